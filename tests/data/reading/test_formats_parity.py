"""The same samples in every format give the same messages and the same pixels."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from hetjax.data import open_source
from hetjax.data.chat import parse_line
from hetjax.data.media import read_image
from tests.harness.dataset_files import (
    WRITERS,
    tar_of,
    write_array_record,
    write_json,
    write_jsonl,
    write_parquet,
    write_tar,
)

COUNT = 7


@pytest.fixture
def images(tmp_path):
    """The bytes of an image for each sample, and the file of each."""
    found = []
    for i in range(COUNT):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (5, 4, 3), np.uint8)).save(path)
        found.append((path, path.read_bytes()))
    return found


def records(names):
    return [
        {
            "messages": [
                {"role": "user", "content": f"Was ist „{i}“ <image>?\n" + "x" * (i * 50)},
                {"role": "assistant", "content": f"größer als {i - 1}"},
            ],
            "images": [name],
        }
        for i, name in enumerate(names)
    ]


def contents(source):
    """What every sample of a source has, its media decoded."""
    chats = [
        parse_line(line.text, where=line.where, folder=line.folder) for line in map(source.__getitem__, range(COUNT))
    ]
    return [
        [
            (turn.role, [part.value if part.kind == "text" else read_image(part.value).tolist() for part in turn.parts])
            for turn in chat.turns
        ]
        for chat in chats
    ]


@pytest.fixture
def expected(tmp_path, images):
    return contents(open_source(write_jsonl(tmp_path / "expected.jsonl", records([path.name for path, _ in images]))))


def of_parquet(write):
    return lambda *args: pytest.importorskip("pyarrow") and write(*args)


FORMS = {
    "ndjson": lambda folder, images: write_jsonl(folder / "a.ndjson", records([path.name for path, _ in images])),
    "json": lambda folder, images: write_json(folder / "a.json", records([path.name for path, _ in images])),
    "json lines called json": lambda folder, images: write_jsonl(
        folder / "a.json", records([path.name for path, _ in images])
    ),
    "json under a key": lambda folder, images: nested(folder / "a.json", records([path.name for path, _ in images])),
    "parquet with paths": of_parquet(
        lambda folder, images: write_parquet(folder / "a.parquet", records([path.name for path, _ in images]))
    ),
    "parquet with bytes": of_parquet(
        lambda folder, images: write_parquet(
            folder / "a.parquet", records([{"bytes": data, "path": path.name} for path, data in images])
        )
    ),
    "parquet with bare bytes": of_parquet(
        lambda folder, images: write_parquet(folder / "a.parquet", records([data for _, data in images]))
    ),
    "arrayrecord with paths": lambda folder, images: write_array_record(
        folder / "a.arrayrecord", [json.dumps(record).encode() for record in records([path.name for path, _ in images])]
    ),
    "arrayrecord with media": lambda folder, images: write_array_record(
        folder / "a.arrayrecord",
        [
            tar_of([("x.json", json.dumps(record).encode()), ("x.png", data)])
            for record, (_, data) in zip(records(["png"] * COUNT), images, strict=True)
        ],
    ),
    "tar, media named": lambda folder, images: write_tar(folder / "a.tar", members(images, "inner/{i}.png")),
    "tar, media named without folder": lambda folder, images: write_tar(folder / "a.tar", members(images, "{i}.png")),
    "tar, media not named": lambda folder, images: write_tar(folder / "a.tar", members(images, None)),
}


def nested(path, values):
    path.write_text(json.dumps({"version": 1, "data": values}))
    return path


def members(images, name):
    for i, ((_, data), record) in enumerate(zip(images, records([""] * COUNT), strict=True)):
        named = record | {"images": [name.format(i=i)]} if name else {"messages": record["messages"]}
        yield f"inner/{i}.json", json.dumps(named).encode()
        yield f"inner/{i}.png", data


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_messages_and_pixels(form, tmp_path, images, expected):
    source = open_source(FORMS[form](tmp_path, images))
    assert len(source) == COUNT
    assert contents(source) == expected


@pytest.mark.parametrize("suffix", WRITERS)
def test_threads_and_a_pickled_copy_read_the_same_in_any_order(suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    given = [{"messages": [{"role": "assistant", "content": f"text {i}"}]} for i in range(60)]
    source = pickle.loads(pickle.dumps(open_source(WRITERS[suffix](tmp_path / f"a{suffix}", given))))
    order = np.random.default_rng(0).permutation(60).tolist()
    with ThreadPoolExecutor(8) as pool:
        texts = [line.text["messages"][0]["content"] for line in pool.map(source.__getitem__, order)]
    assert texts == [f"text {i}" for i in order]
    assert len({source[i].where for i in range(60)}) == 60


def test_a_folder_and_a_glob_are_the_files_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "d"
    for name in ("b/train-00001.jsonl", "a/train-00000.jsonl", "test.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [{"text": f"{name} {i}"} for i in range(3)])
    (folder / "dataset_info.json").write_text("{}")
    (folder / ".cache").mkdir()
    write_jsonl(folder / ".cache" / "train-9.jsonl", [{"text": "hidden"}])
    names = ["a/train-00000.jsonl", "b/train-00001.jsonl", "test.jsonl"]

    def found(*args):
        source = open_source(*args)
        return [source[i].text["messages"][0]["content"] for i in range(len(source))]

    assert found(folder) == [f"{name} {i}" for name in names for i in range(3)]
    assert found(folder, "train") == [f"{name} {i}" for name in names[:2] for i in range(3)]
    assert found(f"{folder}/**/train*.jsonl") == found(folder, "train")
    assert open_source(folder)[4].where == f"{folder}/b/train-00001.jsonl:2"


def test_media_are_relative_to_the_file_that_names_them(tmp_path, images):
    for name in ("one", "two"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "x.png").write_bytes(images[0 if name == "one" else 1][1])
        write_jsonl(tmp_path / "d" / name / "a.jsonl", [{"text": name, "image": "x.png"}])
    source = open_source(tmp_path / "d")
    for i in range(2):
        line = source[i]
        (part,) = parse_line(line.text, where=line.where, folder=line.folder).media
        np.testing.assert_array_equal(read_image(part.value), read_image(images[i][0]))


def test_media_in_a_shard_are_read_when_they_are_decoded_and_not_before(tmp_path, images, monkeypatch):
    source = open_source(write_tar(tmp_path / "a.tar", members(images, None)))
    opened = []
    from hetjax.data.media.held_media import MediaRange

    read = MediaRange.open
    monkeypatch.setattr(MediaRange, "open", lambda self: opened.append(self.name) or read(self))
    line = source[3]
    (part,) = parse_line(line.text, where=line.where, folder=line.folder).media
    assert not opened
    np.testing.assert_array_equal(read_image(part.value), read_image(images[3][0]))
    assert opened == ["inner/3.png"]


def test_an_index_is_eight_bytes_a_line_or_member(tmp_path):
    lines = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 1000}] * 2000)
    shard = write_tar(tmp_path / "a.tar", [(f"{i}.json", b'{"text": "' + b"x" * 500 + b'"}') for i in range(2000)])
    for path in (lines, shard):
        assert len(pickle.dumps(open_source(path))) < 8 * 2000 + 2000


def test_a_parquet_file_that_takes_the_place_of_another_is_read_anew(tmp_path):
    pytest.importorskip("pyarrow")
    for answer, rows in (("old", 2), ("new", 5)):
        write_parquet(tmp_path / "a.parquet", [{"prompt": "?", "completion": answer}] * rows)
        source = open_source(tmp_path / "a.parquet")
        assert len(source) == rows
        assert source[rows - 1].text["messages"][-1]["content"] == answer
