"""The fingerprint of a dataset tells edits, and nothing else."""

import pytest

from hetjax.data.reading import fingerprint as module
from hetjax.data.reading.fingerprint import fingerprint


@pytest.fixture
def small(monkeypatch):
    """Limits by which a few kilobytes are a large dataset."""
    monkeypatch.setattr(module, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(module, "_SAMPLES", 8)
    monkeypatch.setattr(module, "_SAMPLE_BYTES", 100)


def write(folder, *contents):
    folder.mkdir(exist_ok=True)
    files = []
    for number, content in enumerate(contents):
        files.append(folder / f"{number}.jsonl")
        files[-1].write_bytes(content)
    return files


def test_it_stays_where_files_are_moved_and_changes_with_any_byte_of_a_small_dataset(small, tmp_path):
    content = [b"a" * 300, b"", b"b" * 200]
    known = fingerprint(write(tmp_path / "a", *content))
    assert fingerprint(write(tmp_path / "moved", *content)) == known
    for place in (0, 299):
        edited = bytearray(content[0])
        edited[place] = 0
        assert fingerprint(write(tmp_path / "b", bytes(edited), *content[1:])) != known
    assert fingerprint(write(tmp_path / "c", content[0] + b"b", b"", content[2][:-1])) != known  # the border alone
    assert fingerprint(write(tmp_path / "d", content[0], content[2])) != known


def test_of_a_large_one_its_sizes_and_pieces_from_begin_to_end_count(small, tmp_path):
    content = [b"a" * 3000, b"b" * 50, b"c" * 4000]
    known = fingerprint(write(tmp_path / "a", *content))
    assert fingerprint(write(tmp_path / "b", content[0], content[1], content[2] + b"c")) != known
    for file, place in ((0, 0), (2, 3999), (0, 1020)):
        edited = [bytearray(each) for each in content]
        edited[file][place] = 0
        assert fingerprint(write(tmp_path / "c", *map(bytes, edited))) != known
    unread = bytearray(content[0])
    unread[500] = 0
    assert fingerprint(write(tmp_path / "d", bytes(unread), *content[1:])) == known


def test_no_file_has_one_too(tmp_path):
    assert fingerprint([]) != fingerprint(write(tmp_path, b"a"))
