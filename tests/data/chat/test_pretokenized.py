"""What is stored of a sample that is tokenized already."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

from hetjax.data.chat import make_arrays, parse_line, parse_messages
from hetjax.data.chat.pretokenized import Pretokenized, StoredMedium, position_runs, runs_of
from hetjax.errors import DataError

STORED = Pretokenized(
    ids=np.asarray([1, 18, 18, 2, 18, 3], np.int32),
    counted=((3, 4, 1.0), (5, 6, 0.5)),
    media=(StoredMedium("image", "0.png", (("image", 1, 2), ("image", 4, 1))),),
    text_tokens=3,
    made_by={"tokenizer": "a", "template": "b", "media": "c"},
)


def test_it_is_read_as_it_was_written():
    again = Pretokenized.of(json.loads(json.dumps(STORED.as_json())))
    assert again.as_json() == STORED.as_json()
    np.testing.assert_array_equal(again.weights(), [0, 0, 0, 1, 0, 0.5])
    assert again.media[0].positions() == {"image": [1, 2, 4]}


def test_runs():
    assert runs_of(np.asarray([0, 1, 1, 0.5, 0, 2], np.float32)) == ((1, 3, 1.0), (3, 4, 0.5), (5, 6, 2.0))
    assert runs_of(np.zeros(3, np.float32)) == () and runs_of(np.ones(2, np.float32)) == ((0, 2, 1.0),)
    assert position_runs("image", [3, 4, 5, 9, 11, 12]) == [("image", 3, 3), ("image", 9, 1), ("image", 11, 2)]
    assert position_runs("image", []) == []


def test_what_made_it_is_compared():
    STORED.check_made_by({"tokenizer": "a", "template": "b", "media": "c"})
    with pytest.raises(DataError, match="another tokenizer and another chat template or template_options than"):
        STORED.check_made_by({"tokenizer": "x", "template": "y", "media": "c"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": "abc"}, "'pretokenized.tokens' is no list"),
        ({"tokens": ["a"]}, "'pretokenized' is malformed"),
        ({"tokens": [1 << 40]}, "'pretokenized' is malformed"),
        ({"counted": [[1, 2]]}, "'pretokenized' is malformed"),
        ({"media": [["smell", "a", []]]}, "there is smell in it, which is no modality"),
        ({"more": 1}, "must be an object with tokens, counted, media, text_tokens, made_by"),
    ],
)
def test_a_malformed_one_is_refused(change, words, tmp_path):
    record = {"pretokenized": {**STORED.as_json(), **change}}
    with pytest.raises(DataError, match=f"^a:1: .*{words}"):
        parse_line(json.dumps(record), where="a:1", folder=tmp_path)
    chat = parse_line(json.dumps({"pretokenized": STORED.as_json()}), where="a:1", folder=tmp_path)
    assert [part.value for part in chat.media] == [tmp_path / "0.png"] == chat.files


def test_places_beyond_the_sample_or_of_other_tokens_are_refused(make_processor, tmp_path):
    PIL.Image.new("RGB", (24, 16)).save(tmp_path / "0.png")
    processor = make_processor()
    record = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
        "images": ["0.png"],
    }
    chat = parse_line(json.dumps(record), where="a:1", folder=tmp_path)
    made = processor.process(chat, training=True)
    stored = processor.pretokenized(chat, made, ["0.png"])

    def restored(**changes):
        line = json.dumps({"pretokenized": dataclasses.replace(stored, **changes).as_json()})
        return processor.process(parse_line(line, where="a:1", folder=tmp_path), training=True)

    again = restored()
    np.testing.assert_array_equal(again.sample.ids, made.sample.ids)
    assert again.text is None and processor.spelled(stored).text == made.text.text
    ((kind, first, count),), end = stored.media[0].placeholders, len(stored.ids)
    for runs in (((kind, first + 1, count),), ((kind, end - 1, count),), ((kind, -count, count),)):
        with pytest.raises(DataError, match=r"^a:1: .* placeholders of '0.png' begin at"):
            restored(media=(StoredMedium("image", "0.png", runs),))
    with pytest.raises(DataError, match=r"^a:1: .* takes 6 placeholders .* has 5 "):
        restored(media=(StoredMedium("image", "0.png", ((kind, first, count - 1),)),))
    with pytest.raises(DataError, match=r"^a:1: .* counts 3 to "):
        restored(counted=((3, end + 1, 1.0),))


def test_a_port_that_a_modality_forgets_is_an_error(make_processor, monkeypatch):
    processor = make_processor()
    monkeypatch.setattr("hetjax.data.modalities.image.patch_arrays", lambda prefix, packed: {})
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    sample = processor.sample(parse_messages(turns, where="here"), training=True)
    with pytest.raises(KeyError, match="patches"):
        make_arrays(processor, [[sample]], training=True)
