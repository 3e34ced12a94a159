"""Which files the samples of a dataset may name."""

import json

import pytest

from hetjax.data import open_source
from hetjax.data.chat import parse_line
from hetjax.data.reading import Line
from hetjax.errors import DataError


def dataset(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    (folder / "a.jsonl").write_text(json.dumps({"messages": messages, "images": [name]}) + "\n")
    return folder / "a.jsonl"


def named(path, **options):
    """The path of the one medium of the one sample."""
    line: Line = open_source(path, **options)[0]
    (part,) = parse_line(line.text, where=line.where, folder=line.folder).media
    return part.value


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "x/../../a.png", "file:///etc/passwd"])
@pytest.mark.parametrize("as_part", [False, True])
def test_a_path_out_of_the_folder_is_refused_unless_the_settings_allow_it(tmp_path, name, as_part):
    path = dataset(tmp_path / "data", name)
    if as_part:
        user = {"role": "user", "content": [{"type": "image", "image": name}]}
        path.write_text(json.dumps({"messages": [user, {"role": "assistant", "content": "!"}]}) + "\n")
    with pytest.raises(DataError, match=r"a.jsonl:1: '.*' lies outside of the dataset's folder .*allow_outside: true"):
        named(path)
    assert named(path, allow_outside=True).name in ("passwd", "a.png")


@pytest.mark.parametrize("name", ["a.png", "x/../a.png", "./a.png"])
def test_a_path_that_stays_in_the_folder_is_taken(tmp_path, name):
    assert named(dataset(tmp_path / "data", name)) == tmp_path / "data" / "a.png"


def test_whole_paths_and_links_in_the_folder_are_taken_wherever_links_lead(tmp_path):
    folder = tmp_path / "data"
    assert named(dataset(folder, str(folder / "b.png"))) == folder / "b.png"
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert named(dataset(folder, "linked/c.png")) == folder / "linked" / "c.png"
    dataset(folder, str(folder / "b.png"))
    (tmp_path / "by_link").symlink_to(folder)
    assert named(tmp_path / "by_link" / "a.jsonl") == folder / "b.png"


def test_files_of_a_folder_may_share_what_it_has(tmp_path):
    dataset(tmp_path / "data" / "train", "../images/a.png")
    assert named(tmp_path / "data") == tmp_path / "data" / "images" / "a.png"
    with pytest.raises(DataError, match="lies outside"):
        named(tmp_path / "data" / "train")


def test_a_relative_folder_is_no_way_out(tmp_path, monkeypatch):
    dataset(tmp_path / "data", "../a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="lies outside"):
        named("data/a.jsonl")
