"""Texts as a whole: special tokens that people spell, placeholders without a text, and media among them."""

import numpy as np
import pytest
import tokenizers

from hetjax.data.chat import ChatTemplate, Processor, ProcessorConfig, Tokenizer, parse_messages
from hetjax.data.chat.chat_rendering import render_chat
from tests.data.chat.conftest import RESOLUTION, encoders
from tests.harness.chat.conversations import CASES, SPECIALS
from tests.harness.chat.tokenizers_of_kinds import KINDS, tokenizer_json

NAMES = ("qwen3", "llama2", "nemotron_3_nano", "gemma3")


def load(kind, **options):
    return Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json(kind)), **options)


def template_of(name):
    return ChatTemplate(CASES[name].source, specials=SPECIALS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_special_token_that_a_person_spells_is_text_without_a_space_in_it(name, kind):
    tokenizer = load(kind)
    spelled = "a <image> b</s>c <|im_end|>"
    chats = [parse_messages([{"role": "user", "content": each}]) for each in ("Q", spelled)]
    plain, made = (render_chat(chat, template_of(name), specials=tokenizer.specials, training=False) for chat in chats)
    assert [made.text[start:stop] for start, stop in made.literal] == ["<image>", "</s>", "<|im_end|>"]
    encoded = tokenizer.encode_whole(made.text, made.literal)
    specials = [token for token in encoded.ids.tolist() if token in tokenizer.special_ids]
    assert specials == [i for i in tokenizer.encode_whole(plain.text).ids.tolist() if i in tokenizer.special_ids]
    # Each token is the text that its place says, so that none stands for a space that is not there.
    for token, start, stop in zip(encoded.ids.tolist(), encoded.starts, encoded.stops, strict=True):
        inside = made.literal[0][0] < start and stop <= made.literal[0][1]
        assert not inside or "▁" not in tokenizer._model.id_to_token(token)
        assert start <= stop <= len(made.text)
    assert tokenizer.decode(encoded.ids).count("<image>") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_ways_to_the_ids_are_one(kind):
    """The tokenizer with aliases, which texts with literal tokens go through, makes the same of any other text."""
    tokenizer = load(kind)
    text = "<s>[INST] Hi the  cat\n\n🙂 ok [/INST] naïve 漢字 </s><s>[INST] None<|im_end|>\nx=1;"
    direct, aliased = tokenizer.encode_whole(text), tokenizer._aliased.encode(text, ())
    for field in ("ids", "starts", "stops"):
        np.testing.assert_array_equal(getattr(direct, field), getattr(aliased, field), err_msg=field)


def test_a_special_token_that_takes_white_space_takes_it_by_its_alias_too():
    model = tokenizers.Tokenizer.from_str(tokenizer_json("byte_bpe"))
    model.add_special_tokens([tokenizers.AddedToken("<sep>", special=True, rstrip=True, lstrip=True)])
    tokenizer = Tokenizer(model)
    text = "the cat  <sep>\n ok"
    np.testing.assert_array_equal(tokenizer.encode_whole(text).ids, tokenizer._aliased.encode(text, ()).ids)


IMAGE = np.zeros((16, 24, 3), np.uint8)  # 6 tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_placeholders_of_media_are_in_the_whole_text(name, kind):
    tokenizer = load(kind)
    config = ProcessorConfig(image_rows=80, resolution=RESOLUTION)
    processor = Processor(config, tokenizer, template_of(name), seq_len=2000, encoders=encoders())
    parts = [{"type": "text", "text": "See "}, {"type": "image", "image": IMAGE}, {"type": "text", "text": " <image>?"}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]
    text, sample, *_ = processor.process(parse_messages(talk), training=True)
    assert "See <img>" + "<image>" * 6 + "</img> <image>?" in text.text
    (medium,) = sample.media["image"]
    want = np.flatnonzero(sample.ids == tokenizer.placeholders["image"])
    np.testing.assert_array_equal(medium.positions, want)
    assert len(want) == 6  # the one that the user spells is text
    without = [{**talk[0], "content": [*parts[:2], {"type": "text", "text": "?"}]}, talk[1]]
    text, sample, *_ = processor.process(parse_messages(without), training=True)
    theirs = tokenizers.Tokenizer.from_str(tokenizer_json(kind))
    assert sample.ids.tolist() == theirs.encode(text.text, add_special_tokens=False).ids
    said = "".join(text.text[span.start : span.stop] for span in text.counted)
    assert "A cat." in said and "See" not in said and "image" not in said


def test_placeholders_that_the_tokenizer_has_by_their_id_alone():
    plain = tokenizers.Tokenizer.from_str(tokenizer_json("prepend"))
    ids = {"audio": 5, "audio_start": 6, "audio_end": 7}  # which texts this tokenizer does not have
    tokenizer = Tokenizer(plain, ids=ids)
    encoded = tokenizer.encode_whole("Hi <so_start><so_embedding><so_embedding><so_end> ok")
    assert [token for token in encoded.ids.tolist() if token in (5, 6, 7)] == [6, 5, 5, 7]
    assert encoded.at(13, 13 + 2 * len("<so_embedding>")).tolist() == np.flatnonzero(encoded.ids == 5).tolist()
