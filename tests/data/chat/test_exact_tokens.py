"""Ids of chats are those of the whole text, and the loss counts what assistants contribute: for templates of released
models, tokenizers of all kinds, and random conversations."""

import datetime
import json

import jinja2.ext
import numpy as np
import pytest
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hetjax.data.chat import ChatTemplate, Tokenizer, parse_line
from hetjax.data.chat.chat_rendering import render_chat
from tests.harness.chat.conversations import CASES, SPECIALS, conversations
from tests.harness.chat.tokenizers_of_kinds import KINDS, tokenizer_json


def render_plainly(source, record, *, asks=False):
    """The text of a conversation, by Jinja alone."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    given = {"messages": record["messages"], "tools": record.get("tools"), "documents": None}
    return environment.from_string(source).render(**given, **SPECIALS, add_generation_prompt=asks)


def rendered(case, template, record, *, training=True, specials=()):
    chat = parse_line(json.dumps(record), where="f:1", folder=None)
    return render_chat(chat, template, specials=specials, training=training)


@pytest.mark.parametrize("name", CASES)
def test_the_loss_counts_what_an_assistant_contributes_and_nothing_else(name):
    case = CASES[name]
    template = ChatTemplate(case.source, specials=SPECIALS)
    for record in conversations(case, 15):
        made = rendered(case, template, record)
        assert made.text == render_plainly(case.source, record)
        messages = record["messages"]
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        assert [made.text[span.start : span.stop] for span in made.counted] == [case.said(messages, i) for i in turns]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_the_whole_text(name, kind):
    case, theirs = CASES[name], tokenizers.Tokenizer.from_str(tokenizer_json(kind))
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json(kind)))
    template = ChatTemplate(case.source, specials=SPECIALS)
    for record in conversations(case, 4):
        made = rendered(case, template, record, specials=tokenizer.specials)
        encoded = tokenizer.encode_whole(made.text, made.literal)
        whole = theirs.encode(render_plainly(case.source, record), add_special_tokens=False)
        assert not made.literal and encoded.ids.tolist() == whole.ids
        check_counted(made, encoded)
    asked = rendered(case, template, record, training=False, specials=tokenizer.specials)
    want = theirs.encode(render_plainly(case.source, record, asks=True), add_special_tokens=False).ids
    assert tokenizer.encode_whole(asked.text, asked.literal).ids.tolist() == want


def check_counted(made, encoded):
    """The counted tokens are those with a counted character, character by character."""
    counted = np.zeros(len(made.text) + 1, bool)
    for span in made.counted:
        counted[span.start : span.stop] = True
    want = [
        counted[start : max(stop, start + 1)].any() for start, stop in zip(encoded.starts, encoded.stops, strict=True)
    ]
    assert (encoded.weights(made.counted) > 0).tolist() == want
    covered = np.zeros(len(made.text) + 1, bool)
    for start, stop, weight in zip(encoded.starts, encoded.stops, encoded.weights(made.counted), strict=True):
        covered[start:stop] |= weight > 0
    missed = [made.text[place] for place in np.flatnonzero(counted & ~covered)]
    assert not missed  # every counted character is in a counted token
