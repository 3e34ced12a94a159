import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from hetjax.data import load_tokenizer
from hetjax.data.tokenizer import SPECIALS
from hetjax.errors import DataError

SPELLED = "".join(f"<{name}>" for name in SPECIALS)


def byte_level_file(path, *, words=(), special=(), ordinary=()):
    """A tokenizer.json of all bytes, plus `words` in its base vocabulary and added tokens of both kinds."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate([*alphabet, *words])}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(list(special))
    model.add_tokens(list(ordinary))
    model.enable_truncation(5)
    model.enable_padding(length=64)
    model.save(str(path))
    return str(path)


@given(st.text())
def test_byte_tokens_are_the_utf8_bytes_and_decode_back(text):
    tokenizer = load_tokenizer(None)
    assert bytes(tokenizer.encode(text)) == text.encode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_special_ids_are_distinct_and_follow_the_bytes():
    tokenizer = load_tokenizer(None)
    assert sorted(getattr(tokenizer, name) for name in SPECIALS) == list(range(256, 263))
    assert tokenizer.vocab_size == 263


def test_decode_gives_no_text_for_special_unknown_and_broken_ids():
    tokenizer = load_tokenizer(None)
    assert tokenizer.decode([tokenizer.bos, 104, 105, tokenizer.eos, 9999, -1]) == "hi"
    assert tokenizer.decode([0xFF]) == "\N{REPLACEMENT CHARACTER}"


def test_file_keeps_its_special_ids_and_the_absent_ones_are_appended(tmp_path):
    path = byte_level_file(tmp_path / "t.json", special=["<eos>", "<image>"])
    tokenizer = load_tokenizer(path)
    in_file = tokenizers.Tokenizer.from_file(path)
    assert tokenizer.eos == in_file.token_to_id("<eos>")
    assert tokenizer.image == in_file.token_to_id("<image>")
    appended = [tokenizer.pad, tokenizer.bos, tokenizer.user, tokenizer.assistant, tokenizer.system]
    assert appended == list(range(258, 263))
    assert tokenizer.vocab_size == 263


@pytest.mark.parametrize(
    "tokens",
    [
        {},
        {"special": [f"<{name}>" for name in SPECIALS]},
        {"ordinary": [f"<{name}>" for name in SPECIALS]},
    ],
    ids=["absent", "special", "ordinary"],
)
def test_text_that_spells_special_tokens_stays_text_in_a_file_tokenizer(tmp_path, tokens):
    tokenizer = load_tokenizer(byte_level_file(tmp_path / "t.json", **tokens))
    text = f"a{SPELLED} <image> é"
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.user, *ids, tokenizer.eos, tokenizer.vocab_size + 7]) == text


def test_text_that_spells_special_tokens_stays_text_in_the_byte_tokenizer():
    tokenizer = load_tokenizer(None)
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode(SPELLED))


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path):
    tokenizer = load_tokenizer(byte_level_file(tmp_path / "t.json"))
    assert len(tokenizer.encode("0123456789")) == 10


def test_missing_or_malformed_file_is_a_data_error_naming_it(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        load_tokenizer(str(tmp_path / "absent.json"))
    bad = tmp_path / "bad.json"
    for content in (b"{", b"{}", b"\xff\xfe"):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.json"):
            load_tokenizer(str(bad))
