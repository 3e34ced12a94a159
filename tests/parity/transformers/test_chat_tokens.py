"""Ids of chats beside those of transformers' apply_chat_template, over templates, tokenizers and conversations."""

import json

import pytest
import tokenizers

from hetjax.data.chat import ChatTemplate, Tokenizer, parse_line
from hetjax.data.chat.chat_rendering import render_chat
from tests.harness.chat.conversations import CASES, SPECIALS, TEMPLATES, conversations
from tests.harness.chat.tokenizers_of_kinds import KINDS, tokenizer_json

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.live


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_ids_of_conversations(name, kind):
    case = CASES[name]
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json(kind)), **SPECIALS
    )
    theirs.chat_template = case.source
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json(kind)))
    template = ChatTemplate(case.source, specials=SPECIALS)
    for record in conversations(case, 20):
        chat = parse_line(json.dumps(record), where="f:1", folder=None)
        for asks in (False, True):
            want = theirs.apply_chat_template(
                record["messages"], tools=record.get("tools"), add_generation_prompt=asks, return_dict=False
            )
            made = render_chat(chat, template, specials=tokenizer.specials, training=not asks)
            assert tokenizer.encode_whole(made.text, made.literal).ids.tolist() == want


def test_what_generation_blocks_say():
    """The mask of a template with blocks, which counts what they hold."""
    source = (TEMPLATES / "qwen3_training.jinja").read_text(encoding="utf-8")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json("byte_bpe")), **SPECIALS
    )
    theirs.chat_template = source
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json("byte_bpe")))
    template = ChatTemplate(source, specials=SPECIALS)
    for record in conversations(CASES["qwen3"], 20):
        want = theirs.apply_chat_template(
            record["messages"], tools=record.get("tools"), return_dict=True, return_assistant_tokens_mask=True
        )
        chat = parse_line(json.dumps(record), where="f:1", folder=None)
        made = render_chat(chat, template, specials=tokenizer.specials, training=True)
        encoded = tokenizer.encode_whole(made.text, made.literal)
        assert encoded.ids.tolist() == want["input_ids"]
        assert (encoded.weights(made.counted) > 0).tolist() == [bool(each) for each in want["assistant_masks"]]
