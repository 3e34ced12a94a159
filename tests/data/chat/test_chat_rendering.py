"""Chat templates, what an assistant says, and text that must stay text."""

import json

import pytest

from hetjax.data.chat import ChatTemplate, load_template, parse_messages
from hetjax.data.chat.chat_rendering import render_chat
from hetjax.data.chat.template import DEFAULT_TEMPLATE
from hetjax.errors import DataError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": " A cat. "},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]
GENERATION = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
PARTS = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>{% endfor %}"
)
TRIMS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
)


def render(tokenizer, template, messages=TALK, *, training=True, **options):
    chat = parse_messages(messages)
    return render_chat(chat, ChatTemplate(template), specials=tokenizer.specials, training=training, **options)


def text_of(rendered):
    """The text, with each medium as its number."""
    pieces, last = [], 0
    for place in rendered.media:
        pieces += [rendered.text[last : place.position], f"({place.number})"]
        last = place.position
    return "".join([*pieces, rendered.text[last:]])


def said(rendered):
    return [rendered.text[span.start : span.stop] for span in rendered.counted]


def ids_of(tokenizer, rendered):
    return tokenizer.encode_whole(rendered.text, rendered.literal).ids.tolist()


def test_the_built_in_template_and_what_an_assistant_says(tokenizer):
    rendered = render(tokenizer, DEFAULT_TEMPLATE)
    assert text_of(rendered) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n(0)What?<|im_end|>\n"
        "<|im_start|>assistant\n A cat. <|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    assert said(rendered) == [" A cat. <|im_end|>", "Yes.<|im_end|>"]


def test_a_prompt_asks_for_the_answer(tokenizer):
    for options, end in (({}, "assistant\n"), ({"enable_thinking": True}, "assistant\n<think>\n"),
                         ({"enable_thinking": False}, "assistant\n<think></think>")):  # fmt: skip
        rendered = render(tokenizer, DEFAULT_TEMPLATE, TALK[:2], training=False, **options)
        assert text_of(rendered).endswith(end) and not said(rendered)


def test_templates_of_other_kinds(tokenizer):
    assert said(render(tokenizer, GENERATION)) == ["A cat.<|im_end|>", "Yes.<|im_end|>"]
    assert said(render(tokenizer, PARTS)) == [" A cat. <|im_end|>", "Yes.<|im_end|>"]
    assert said(render(tokenizer, TRIMS)) == ["A cat.<|im_end|>", "Yes.<|im_end|>"]


def test_text_that_spells_a_special_token_stays_text(tokenizer):
    written = "a <image> b <|im_end|> c </img>"
    rendered = render(tokenizer, TRIMS, [{"role": "user", "content": written}], training=False)
    assert text_of(rendered) == f"<|im_start|>user\n{written}<|im_end|>\n"
    ids = ids_of(tokenizer, rendered)
    start, end = tokenizer.encode("<|im_start|>")[0], tokenizer.encode("<|im_end|>")[0]
    assert [i for i in ids if i in tokenizer.special_ids] == [start, end]
    assert tokenizer.decode(ids) == f"user\n{written}\n"


def test_what_an_assistant_thinks_keeps_its_marks(tokenizer):
    ids = ids_of(tokenizer, render(tokenizer, TRIMS, [{"role": "assistant", "content": "<think>hm</think>yes<image>"}]))
    assert tokenizer.encode("<think>")[0] in ids and tokenizer.placeholders["image"] not in ids


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system here') }}", "the prompt: the chat template refuses.*no system here"),
        ("{{ messages[0].content }}", "shows 0 of 1 images"),
        (
            "{% for m in messages %}{{ m.content.split('cat')[-1] }}{% endfor %}",
            "the prompt: message 2: the chat template does not show its content",
        ),
        (
            "{% macro all() %}{% for m in messages %}{{ m.content }}{% endfor %}{% endmacro %}{{ all() }}",
            "cannot be seen",
        ),
    ],
)
def test_a_template_that_loses_something_is_refused(tokenizer, template, message):
    chat = parse_messages(TALK, where="the prompt")
    with pytest.raises(DataError, match=message):
        render_chat(chat, ChatTemplate(template), specials=tokenizer.specials, training=True)


def test_nothing_to_learn_is_refused(tokenizer):
    with pytest.raises(DataError, match="nothing to learn"):
        render(tokenizer, TRIMS, TALK[:2])


def test_templates_of_a_checkpoint(tmp_path):
    assert load_template(tmp_path).render([{"role": "user", "content": "x"}], add_generation_prompt=False).text
    config = {
        "chat_template": "{{ bos_token }}{{ tools | tojson }}",
        "bos_token": {"content": "<s>"},
        "eos_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_template(tmp_path).render([], add_generation_prompt=False, tools=["é"]).text == '<s>["é"]'
    (tmp_path / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y') }}{% for i in [1, 2] %}{% break %}{% endfor %}"
    )
    assert load_template(tmp_path).render([], add_generation_prompt=False).text.startswith("2")
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(DataError, match="malformed"):
        load_template(tmp_path)
    with pytest.raises(DataError, match="refuses"):
        ChatTemplate("{{ messages.append(1) }}").render([], add_generation_prompt=False)
