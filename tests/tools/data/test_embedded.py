"""A sample with its media inside: under which names, and that each file is there once."""

import base64
import tarfile

import pytest

from hetjax.data.media.held_media import MediaBytes
from hetjax.data.modalities import MODALITIES
from hetjax.data.reading.webdataset import packed_sample
from hetjax.errors import DataError
from hetjax.tools.data.embedded import END_OF_TAR, Embedder, Member, as_json, tar_of, with_names

PNG = b"\x89PNG\r\n\x1a\nrest"


def test_names_are_by_kind_and_content_and_each_file_stands_once(tmp_path):
    for name, data in {"a.PNG": PNG, "b": PNG, "c.wav": b"RIFF", "d.txt": b"RIFF"}.items():
        (tmp_path / name).write_bytes(data)
    uri = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    embedder = Embedder(tmp_path)
    record = {
        "messages": [
            {"role": "user", "content": [{"type": "audio", "audio": "c.wav"}, {"type": "text", "text": "a.PNG"}]},
            {"role": "assistant", "content": "a.PNG"},
        ],
        "images": ["a.PNG", "b", "a.PNG", uri],
        "audios": ["d.txt"],
    }
    named = with_names(record, embedder.name)
    assert named["images"] == ["0.png", "1.png", "0.png", "2.png"] and named["audios"] == ["3.wav"]
    assert named["messages"][0]["content"] == [{"type": "audio", "audio": "4.wav"}, {"type": "text", "text": "a.PNG"}]
    assert named["messages"][1] is record["messages"][1] and record["images"][0] == "a.PNG"
    assert [each.data for each in embedder.members] == [PNG, PNG, PNG, b"RIFF", b"RIFF"]
    held = MediaBytes(name="x", data=PNG)
    assert embedder.held("image", held) == embedder.held("image", held) == "5.png"
    with pytest.raises(DataError, match="does not exist"):
        embedder.name("image", "none.png")


def test_media_of_which_no_suffix_is_known_are_within_the_text(tmp_path, monkeypatch):
    monkeypatch.setitem(MODALITIES, "depth", type("Depth", (), {"suffixes": (), "name": "depth"}))
    (tmp_path / "a.npy").write_bytes(b"numbers")
    embedder = Embedder(tmp_path)
    assert embedder.name("depth", "a.npy") == "data:application/octet-stream;base64,bnVtYmVycw=="
    assert embedder.members == []


def test_a_tar_is_read_by_tarfile_and_by_the_reader(tmp_path):
    members = [("000.json", as_json({"messages": [], "images": ["0.png"]})), ("000.0.png", PNG), ("000.1.png", b"")]
    (tmp_path / "a.tar").write_bytes(tar_of(members) + END_OF_TAR)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(each.name, tar.extractfile(each).read()) for each in tar.getmembers()] == members
    line = packed_sample(tar_of(members), "x:1")
    assert line.media["0.png"].open().read() == PNG and Member("0.png", PNG).suffix in line.text
