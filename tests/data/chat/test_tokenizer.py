import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from hetjax.data import load_tokenizer
from hetjax.data.chat import Tokenizer
from hetjax.errors import ConfigError, DataError

BUILT_IN = load_tokenizer(None)


@given(st.text())
def test_the_built_in_tokenizer_has_a_token_a_byte_and_decodes_it_back(text):
    encoded = BUILT_IN.encode_whole(text, [(0, len(text))])
    assert len(encoded.ids) == len(text.encode()) and BUILT_IN.special_ids.isdisjoint(encoded.ids.tolist())
    assert BUILT_IN.decode(encoded.ids) == text


def test_decode_gives_no_text_for_special_unknown_and_broken_ids():
    hi = BUILT_IN.encode("hi")
    assert BUILT_IN.decode([BUILT_IN.placeholder("image"), *hi, BUILT_IN.eos, 9999, -1]) == "hi"
    assert BUILT_IN.decode(BUILT_IN.encode("é")[:1]) == "\N{REPLACEMENT CHARACTER}"
    assert BUILT_IN.vocab_size == 288 and all(0 <= i < 288 for i in BUILT_IN.special_ids)


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path):
    model = tokenizers.Tokenizer.from_str(BUILT_IN._model.to_str())
    model.enable_truncation(5)
    model.enable_padding(length=64)
    model.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(path).encode("0123456789") == BUILT_IN.encode("0123456789")


@pytest.mark.parametrize(
    ("tokens", "texts"),
    [
        (["<image>", "<img>", "</img>"], ["<image>", "<img>", "</img>"]),
        (
            ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"],
            ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"],
        ),
        (["<image>"], ["<image>", "", ""]),
        ([], ["<image>", "<img>", "</img>"]),
    ],
)
def test_placeholders_are_spelled_as_the_tokenizer_has_them(tokens, texts):
    model = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    model.add_special_tokens(["</s>", *tokens])
    tokenizer = Tokenizer(model)
    names = ["image", "image_start", "image_end"]
    assert [tokenizer.texts[name] for name in names] == texts
    assert tokenizer.placeholders == {n: model.token_to_id(t) for n, t in zip(names, texts, strict=True) if t in tokens}


def test_missing_or_malformed_file_is_a_data_error_naming_it(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        load_tokenizer(str(tmp_path / "absent.json"))
    bad = tmp_path / "bad.json"
    for content in (b"{", b"{}", b"\xff\xfe"):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.json"):
            load_tokenizer(str(bad))
    bad.write_text(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).to_str())
    with pytest.raises(ConfigError, match="say which ids end an answer"):
        load_tokenizer(bad)
