import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from hetjax.data import JsonlSource
from hetjax.errors import DataError


def test_lines_come_by_index_with_their_numbers_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes("first\n\n  \r\nsecond é\r\nlast".encode())
    source = JsonlSource(path)
    lines = [source[i] for i in range(len(source))]
    assert [line.text.decode().strip() for line in lines] == ["first", "second é", "last"]
    assert [line.where for line in lines] == [f"{path}:1", f"{path}:4", f"{path}:5"]


def test_threads_and_a_pickled_copy_read_the_same_lines(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(f"line {i}\n" for i in range(500)))
    source = pickle.loads(pickle.dumps(JsonlSource(path)))
    with ThreadPoolExecutor(8) as pool:
        texts = [line.text for line in pool.map(source.__getitem__, range(500))]
    assert texts == [f"line {i}\n".encode() for i in range(500)]


def test_the_lines_themselves_are_not_held_in_memory(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(("x" * 10_000 + "\n") * 100)
    assert len(pickle.dumps(JsonlSource(path))) < 5_000


def test_missing_folder_and_empty_files_are_data_errors(tmp_path):
    with pytest.raises(DataError, match=r"absent\.jsonl' cannot be read: No such file"):
        JsonlSource(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="directory"):
        JsonlSource(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.jsonl' is empty"):
        JsonlSource(tmp_path / "empty.jsonl")


def test_a_file_that_vanishes_later_is_a_data_error_naming_the_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("a\nb\n")
    source = JsonlSource(path)
    path.unlink()
    with pytest.raises(DataError, match=r"d\.jsonl:2: the line cannot be read"):
        source[1]
