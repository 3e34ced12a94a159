"""What the loss counts: weights, empty answers, blocks, and what a template leaves out."""

import json

import pytest

from hetjax.data.chat import ChatTemplate, parse_line, parse_messages
from hetjax.data.chat.chat_rendering import render_chat
from hetjax.errors import DataError
from tests.harness.chat.conversations import SPECIALS, TEMPLATES, TOOLS

ASK = {"role": "user", "content": "What?"}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"


def template_of(name):
    return ChatTemplate((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), specials=SPECIALS)


def render(template, *messages, training=True, **keys):
    template = template_of(template) if isinstance(template, str) else template
    chat = parse_line(json.dumps({"messages": messages, **keys}), where="f:1", folder=None)
    return render_chat(chat, template, specials=SPECIALS.values(), training=training)


def said(made):
    return [made.text[span.start : span.stop] for span in made.counted]


def answer(content="Yes.", **others):
    return {"role": "assistant", "content": content, **others}


def test_a_message_counts_by_its_weight():
    made = render("qwen2_5", ASK, answer("a", weight=0), ASK, answer("b", train=False), ASK, answer("c", weight=0.5))
    assert [(made.text[span.start : span.stop], span.weight) for span in made.counted] == [("c<|im_end|>", 0.5)]
    made = render("qwen3_training", ASK, answer("a", weight=0), ASK, answer("b"))
    assert said(made) == ["<think>\n\n</think>\n\nb<|im_end|>\n"]
    with pytest.raises(DataError, match="f:1: all assistant messages have weight 0"):
        render("qwen2_5", ASK, answer(train=False))


@pytest.mark.parametrize("keys", [{"weight": -1}, {"weight": "1"}, {"train": 1}, {"weight": float("nan")}])
def test_a_weight_that_is_none_is_refused(keys):
    with pytest.raises(DataError, match=f"message 1: '{next(iter(keys))}' must be"):
        parse_messages([ASK, answer(**keys)])
    with pytest.raises(
        DataError, match="message 0: 'weight' is 1, but the loss counts what assistants say, not a user"
    ):
        parse_messages([{**ASK, "weight": 1}])


def test_an_empty_answer_is_its_end_mark():
    assert said(render("qwen2_5", ASK, answer(""))) == ["<|im_end|>"]
    assert said(render("llama2", ASK, answer(""))) == [" </s>"]
    nothing = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="f:1: message 1: it is empty, and the chat template ends it by nothing"):
        render(nothing, ASK, answer(""))


def test_white_space_at_the_end_and_an_end_mark_behind_a_space():
    assert said(render("phi3_5", ASK, answer("Yes. \n "))) == ["Yes. \n <|end|>"]
    assert said(render("llama2", ASK, answer("Yes. \n "))) == ["Yes. </s>"]


@pytest.mark.parametrize("content", [None, "Let me see."])
def test_tool_calls_and_null_content(content):
    call = answer(content, tool_calls=[CALL], reasoning_content="Ask.")
    result = {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "get_weather"}
    made = render("qwen3", ASK, call, result, answer("Sunny."), tools=TOOLS)
    words = f"{content}\n" if content else ""
    assert said(made) == [
        f"<think>\nAsk.\n</think>\n\n{words}"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nSunny.<|im_end|>",
    ]
    assert '"description": "Weather of a city"' in made.text
    assert made.text == render("qwen3", ASK, call, result, answer("Sunny."), tools=json.dumps(TOOLS)).text


def test_what_stands_beside_tool_calls_is_repaired_where_a_template_needs_it():
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    call = answer(None, tool_calls=[{"type": "function", "function": function}])
    for name in ("qwen2_5", "qwen3"):
        (words,) = said(render(name, ASK, call))
        assert '"arguments": {"city": "Rome"}}' in words
    (words,) = said(render("nemotron_3_nano", ASK, call))
    assert "<parameter=city>\nRome\n</parameter>" in words
    prints_none = ChatTemplate(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls | default('') }}|{% endfor %}"
    )
    assert "None" not in render(prints_none, ASK, call).text


def test_thoughts_in_a_content_that_the_template_moves():
    thought = "<think>\nhm\n</think>\n\nYes."
    turns = (ASK, answer(thought), ASK, answer(thought))
    assert said(render("qwen3", *turns)) == ["Yes.<|im_end|>", f"{thought}<|im_end|>"]
    assert said(render("nemotron_3_nano", *turns)) == [
        "<think></think>\n\nYes.<|im_end|>", f"{thought}<|im_end|>",
    ]  # fmt: skip
    reasons = (ASK, answer("One.", reasoning_content="a"), ASK, answer("Two.", reasoning="b"))
    assert said(render("nemotron_3_nano", *reasons)) == [
        "<think></think>\nOne.<|im_end|>", "<think>\nb\n</think>\nTwo.<|im_end|>",
    ]  # fmt: skip
    assert said(render("nemotron_3_nano", *reasons[:2])) == ["<think>\na\n</think>\nOne.<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "messages", "keys", "lost"),
    [
        ("qwen2_5", (ASK, answer(reasoning_content="hm")), {}, "message 1: .* its reasoning"),
        ("phi3_5", (ASK, answer(tool_calls=[CALL])), {}, "message 1: .* its tool calls"),
        ("phi3_5", (ASK, answer(), {"role": "tool", "content": "x"}), {}, "message 2: .* its content"),
        ("llama3_1", (ASK, answer("Let me see", tool_calls=[CALL])), {}, "message 1: .* its content"),
        ("gemma", (ASK, answer()), {"tools": TOOLS}, "the chat: .* its tools"),
        ("llama2", (ASK, answer(None, tool_calls=[CALL])), {}, "message 1: .* its tool calls"),
    ],
)
def test_what_a_template_does_not_show_is_named(name, messages, keys, lost):
    with pytest.raises(DataError, match=f"^f:1: {lost}"):
        render(name, *messages, **keys)


def test_what_another_says_within_an_assistants_turn_is_not_counted():
    ahead = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'assistant' %}<a>{{ m.content or '' }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{{ messages[loop.index].content }}{% endif %}|"
        "{% elif m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="f:1: message 2: the chat template writes it within the turn of an assistant"):
        render(ahead, ASK, answer(None, tool_calls=[CALL]), {"role": "tool", "content": "sunny"})


def test_a_key_of_a_message_that_the_template_does_not_read_is_named():
    with pytest.raises(DataError, match=r"f:1: message 1: .* key 'reasoning_contents'; 'reasoning_content' is likely"):
        render("qwen3", ASK, answer(reasoning_contents="hm"))
    reads = ChatTemplate("{% for m in messages %}{{ m.mood }}{{ m.content }}|{% endfor %}")
    assert "glad" in render(reads, {**ASK, "mood": "glad"}, answer()).text
    assert render("qwen3", {**ASK, "mood": None}, answer(refusal=None)).text


def test_a_template_gets_the_keys_of_a_message_in_their_order():
    prints = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m | tojson }}|{% endfor %}")
    made = render(prints, ASK, answer(reasoning_content="hm"), training=False)
    assert made.text == (
        '<user>{"role": "user", "content": "What?"}|'
        '<assistant>{"thinking": "hm", "role": "assistant", "content": "Yes.", "reasoning_content": "hm"}|'
    )
