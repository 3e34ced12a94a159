"""Prompts for Qwen3-VL: times ahead of tubelets, and coordinates of text, images and videos."""

import dataclasses

import numpy as np
import pytest

from hetjax.config.build import build_graph
from hetjax.config.build_loader import make_loader
from hetjax.config.model_config import ModelConfig
from hetjax.data import DataConfig
from hetjax.data.chat import ProcessorConfig, parse_messages
from hetjax.data.chat.collate import make_arrays, row_shapes
from hetjax.data.media import Video
from hetjax.data.modalities.prompt_order import Tokens, video_items
from hetjax.errors import ConfigError
from hetjax.models.dynamic_resolution import DynamicResolution
from tests.harness.models.qwen3_vl_cases import CONFIGS

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
FILM = Video(frames=np.repeat(PIXELS[None, :, :16], 3, axis=0), times=(0.0, 0.5, 1.0))
RESOLUTION = DynamicResolution(patch_size=4, merge=2, min_patches=4, max_patches=64, video_patches=8, rule="qwen")


def loader(**changes):
    settings = {"image_rows": 16, "video_rows": 32, "resolution": RESOLUTION, **changes}
    data = DataConfig(train="none.jsonl", seq_len=96, batch_size=2, processor=ProcessorConfig(**settings))
    return make_loader(data, ModelConfig.of(CONFIGS["qwen3_vl"]))


def chat():
    content = [{"type": "image", "image": PIXELS}, {"type": "video", "video": FILM}, {"type": "text", "text": "Why?"}]
    return parse_messages([{"role": "user", "content": content}, {"role": "assistant", "content": "so"}], where="here")


def test_a_sample_has_times_and_coordinates():
    processor = loader().processor
    made = processor.process(chat(), training=True)
    image, tubelet = "<image>" * 3, "<img><image><image></img>"
    assert f"<img>{image}</img><0.2 seconds>{tubelet}<1.0 seconds>{tubelet}Why?" in made.text.text
    arrays = make_arrays(processor, [[made.sample], [made.sample]], training=True)
    shapes = row_shapes(processor.capacity, training=True)["llm"]
    assert arrays["llm"]["coordinates"].shape == (2, *shapes["coordinates"].shape) == (2, 96, 3)
    ids, found = arrays["llm"]["tokens"][0], arrays["llm"]["coordinates"][0]
    first, *_ = at = np.flatnonzero(ids == processor.tokenizer.placeholder("image"))
    assert len(at) == 3 + 2 + 2
    np.testing.assert_array_equal(found[:first], np.repeat(np.arange(first)[:, None], 3, axis=1))
    np.testing.assert_array_equal(found[first : first + 3] - first, [(0, 0, 0), (0, 0, 1), (0, 0, 2)])
    assert (found[first + 3] == first + 3).all()
    # Lines of tokens take as many positions as they have: nothing is behind.
    np.testing.assert_array_equal(found[:, 2], np.arange(96))
    assert (found[at[3:5], 0] == at[3]).all() and (found[at[3:5], 1] == at[3]).all()


def test_edges_lead_to_every_depth():
    graph = build_graph(ModelConfig.of(CONFIGS["qwen3_vl"]))
    assert [edge.name for edge in graph.edges] == [
        "vision.tokens->llm.image_tokens", "vision.deepstack_0->llm.deepstack_0",
        "vision.deepstack_1->llm.deepstack_1",
    ]  # fmt: skip
    configs = CONFIGS["qwen3_vl"]
    with pytest.raises(ConfigError, match=r"makes tokens of 2 depths, but model.llm takes those of 1"):
        ModelConfig.of({**configs, "llm": dataclasses.replace(configs["llm"], deepstack=1)})


def test_a_short_last_tubelet_is_at_the_time_of_its_frame():
    items = video_items((0.0, 0.5, 1.0, 1.5, 2.25), 2, 4, lines="seconds")
    assert items[::2] == ["<0.2 seconds>", "<1.2 seconds>", "<2.2 seconds>"]
    assert items[1::2] == [Tokens(kind="image", count=4)] * 3
