"""Templates that write nothing behind an answer, as GLM's: what ends it is learned all the same."""

import json

import pytest

from hetjax.data.chat import ChatTemplate, end_mark, ending_of, parse_line
from hetjax.data.chat.chat_rendering import render_chat

GLM = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PARTS = GLM.replace("m.content", "m.content[0].text")
WORDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
STOPS = ["<|endoftext|>", "<|user|>", "<|observation|>"]
ASK = {"role": "user", "content": "What?"}


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


def render(source, *messages, training=True):
    template = ChatTemplate(source)
    chat = parse_line(json.dumps({"messages": messages}), where="f:1", folder=None)
    ending = ending_of(template, STOPS)
    return render_chat(chat, template, specials=[*STOPS, "<|assistant|>"], training=training, ending=ending)


def said(made):
    return [made.text[span.start : span.stop] for span in made.counted]


@pytest.mark.parametrize("source", [GLM, PARTS])
def test_what_begins_the_next_question_ends_an_answer(source):
    made = render(source, ASK, answer("a"), ASK, answer("b"))
    assert made.text == "[gMASK]<sop><|user|>\nWhat?<|assistant|>\na<|user|>\nWhat?<|assistant|>\nb<|user|>"
    assert said(made) == ["a<|user|>", "b<|user|>"]
    assert said(render(source, ASK, answer("a", weight=0), ASK, answer("b"))) == ["b<|user|>"]
    assert said(render(source, ASK, answer("a"), ASK, answer("b", train=False))) == ["a<|user|>"]
    assert render(source, ASK, training=False).text.endswith("<|assistant|>\n")


def test_else_the_first_token_at_which_generation_stops_does():
    made = render(WORDS, ASK, answer("a"), ASK, answer("b"))
    assert made.text == "user: What?\nassistant: a\nuser: What?\nassistant: b\n<|endoftext|>"
    assert said(made) == ["a\n", "b\n<|endoftext|>"]  # the line's end ends the first one


def test_a_template_with_an_end_mark_or_with_blocks_says_it_itself():
    marked = ChatTemplate(GLM.replace("{{ m.content }}", "{{ m.content }}<|end|>"))
    assert end_mark(marked) == "<|end|>" and ending_of(marked, STOPS) == ""
    blocks = ChatTemplate(GLM.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}"))
    assert ending_of(blocks, STOPS) == ""
    assert ending_of(ChatTemplate(GLM), []) == ""
