"""Chats as ids and the layout of media, beside those of transformers."""

import types

import numpy as np
import pytest

from hetjax.data.chat import ChatTemplate, load_tokenizer, parse_messages
from hetjax.data.chat.chat_rendering import render_chat
from hetjax.data.chat.template import DEFAULT_TEMPLATE
from hetjax.data.modalities.prompt_order import Tokens, audio_items, image_items, video_items

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.live

TEMPLATES = {
    "built in": DEFAULT_TEMPLATE,
    "strips": (
        "{{ bos_token }}{%- for message in messages %}\n"
        "    {%- if message.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}\n"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
        "{%- if loop.index0 > 90 %}{% break %}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "options": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m | tojson }}"
    "{% endfor %}{{ documents | tojson(indent=2) }}",
}
TALK = [
    {"role": "system", "content": "Be brief; é ü 漢字."},
    {"role": "user", "content": "  What is 2 + 2?\n\nAnd 3?  "},
    {"role": "assistant", "content": "4, 5"},
    {"role": "user", "content": "Thanks"},
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_ids_of_a_chat(name, count):
    tokenizer = load_tokenizer(None)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._model, bos_token="<s>")
    theirs.chat_template = TEMPLATES[name]
    options = {"documents": [{"title": "ä"}]}
    want = theirs.apply_chat_template(
        TALK[:count], add_generation_prompt=True, tokenize=True, return_dict=True, **options
    )["input_ids"]
    template = ChatTemplate(TEMPLATES[name], specials={"bos_token": "<s>"})
    made = render_chat(parse_messages(TALK[:count]), template, specials=tokenizer.specials, training=False, **options)
    assert tokenizer.encode_whole(made.text, made.literal).ids.tolist() == list(want)


def text(items):
    marks = {"image": "<img>{}</img>", "audio": "<so_start>{}<so_end>"}
    words = {"image": "<image>", "audio": "<so_embedding>"}
    return "".join(
        marks[item.kind].format(words[item.kind] * item.count) if isinstance(item, Tokens) else item for item in items
    )


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@pytest.mark.parametrize("fps", [2.0, 29.97, 24.0])
def test_layout_of_media(frames, fps):
    module = pytest.importorskip("transformers.models.nemotron_h_omni.processing_nemotron_h_omni")
    theirs = module.NemotronH_Omni_Reasoning_V3Processor
    self = types.SimpleNamespace(
        image_start_token="<img>", image_end_token="</img>", image_token="<image>", video_temporal_patch_dim=2,
        audio_start_token="<so_start>", audio_end_token="<so_end>", audio_token="<so_embedding>",
        image_processor=types.SimpleNamespace(downsample_ratio=0.5),
    )  # fmt: skip
    indices = np.arange(frames) * 7
    metadata = types.SimpleNamespace(fps=fps, frames_indices=indices)
    want = theirs.replace_video_token(self, {"num_tokens": [6]}, 0, num_frames=frames, video_metadata=metadata)
    times = [int(index) * int(1000 / fps) / 1000 for index in indices]
    assert text(video_items(times, 2, 6)) == want
    image = theirs.replace_image_token(self, {"image_grid_hw": np.array([[4, 6]])}, 0)
    assert text(image_items(6)) == image
    assert text(audio_items(9)) == theirs.replace_audio_token(self, {"num_tokens": [9]}, 0)
