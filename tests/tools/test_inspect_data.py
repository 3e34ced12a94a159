"""hetjax data inspect: what the model gets, what the loss counts, and why a sample cannot be used."""

import json

import pytest

from hetjax.cli import main
from hetjax.data import write_digits, write_shapes
from tests.harness.paths import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder / "shapes", samples=7)
    lines = (folder / "shapes/train.jsonl").read_text().splitlines()
    bad = json.dumps({"messages": [{"role": "user", "content": "<image>"}], "image": "a.png"})
    (folder / "shapes/train.jsonl").write_text("\n".join([*lines, bad, ""]))
    return folder


def inspect(capsys, folder, *arguments):
    capsys.readouterr()
    config = ("--config", str(ROOT / "configs/omni_tiny.yaml"), "--data.train", str(folder / "shapes/train.jsonl"))
    main(["data", "inspect", *config, *arguments])
    return capsys.readouterr().out


def test_one_object_a_sample(folder, capsys):
    found = [json.loads(line) for line in inspect(capsys, folder, "--samples", "9", "--json").splitlines()]
    records = [json.loads(line) for line in (folder / "shapes/train.jsonl").read_text().splitlines()]
    assert len(found) == len(records)
    kinds = set()
    for sample, record in zip(found[:-1], records[:-1], strict=True):
        assert set(sample) == {"text", "tokens", "counted", "media", "error"} and sample["error"] is None
        answers = [each["content"] for each in record["messages"] if each["role"] == "assistant"]
        assert sample["counted"] == [answer + "<|im_end|>" for answer in answers]
        assert len(sample["tokens"]) == len(sample["text"].encode()) - sum(
            len(mark) - 1 for mark in _marks(sample["text"])
        )  # a token a byte, but for marks
        for medium in sample["media"]:
            kinds.add(medium["kind"])
            assert medium["file"].startswith(str(folder)) and all(size > 0 for size in medium["shape"])
            assert (medium["times"] is not None) == (medium["kind"] == "video")
            assert medium["times"] is None or len(medium["shape"]) == 4
    assert len(kinds) > 1
    assert "'images' is likely meant" in found[-1]["error"] and not found[-1]["tokens"]


def _marks(text):
    marks = ["<|im_start|>", "<|im_end|>", "<image>", "<img>", "</img>", "<so_embedding>", "<so_start>", "<so_end>"]
    return [mark for mark in marks for _ in range(text.count(mark))]


def test_one_sample_for_people(folder, capsys):
    out = inspect(capsys, folder, "--index", "1")
    assert "tokens," in out and "in the loss" in out and "<|im_end|>" in out
    with pytest.raises(SystemExit):
        inspect(capsys, folder, "--index", "99")
    assert "has 7 samples" in " ".join(capsys.readouterr().err.split())


def test_images_of_one_size(tmp_path, capsys):
    write_digits(tmp_path / "digits")
    capsys.readouterr()
    config = ("--config", str(ROOT / "configs/digits.yaml"), "--data.train", str(tmp_path / "digits/train.jsonl"))
    main(["data", "inspect", *config, "--index", "0", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    sample = json.loads(line)
    record = json.loads((tmp_path / "digits/train.jsonl").read_text().splitlines()[0])
    (answer,) = (each["content"] for each in record["messages"] if each["role"] == "assistant")
    assert sample["counted"] == [answer + "<|im_end|>"]
    assert sample["text"].startswith("<|im_start|>user\n<img>" + "<image>" * 16)
    assert sample["media"][0]["kind"] == "image" and sample["media"][0]["shape"] == [16, 16, 3]
