"""A dataset that is not what it seems is one error that names the format and the fix."""

import gzip
import json

import pytest

from hetjax.data import open_source
from hetjax.data.chat import parse_line
from hetjax.errors import DataError
from tests.harness.dataset_files import write_array_record, write_json, write_jsonl, write_parquet, write_tar

RECORDS = [{"text": f"text {i}"} for i in range(5)]
TEXT = json.dumps(RECORDS[0]).encode()


def texts(source):
    return [source[i].text["messages"][0]["content"] for i in range(len(source))]


WRONG = {
    "a tar": (lambda path: write_tar(path, [("0.json", TEXT)]), r"no JSONL file but tar; name it \.tar \(WebDataset\)"),
    "ArrayRecord": (lambda path: write_array_record(path, [TEXT]), r"but ArrayRecord; name it \.arrayrecord"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(TEXT)), r"but gzip; unpack it \(gunzip FILE\)"),
    "UTF-16": (lambda path: path.write_text("{}", "utf-16"), r"but UTF-16; write it as UTF-8"),
    "a Git LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"but a Git LFS pointer; fetch the file itself \(git lfs pull\)",
    ),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "but an HTML page; download the file itself"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00"), "but binary; give a file of JSONL"),
}


@pytest.mark.parametrize("what", WRONG)
def test_another_format_given_as_jsonl_is_one_error_that_names_it(what, tmp_path):
    write, message = WRONG[what]
    write(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "train.jsonl")


def test_parquet_given_as_jsonl_and_jsonl_given_as_parquet_or_tar(tmp_path):
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "a.parquet", RECORDS).rename(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"no JSONL file but Parquet; name it \.parquet"):
        open_source(tmp_path / "train.jsonl")
    for suffix in (".parquet", ".tar", ".arrayrecord"):
        write_jsonl(tmp_path / f"a{suffix}", RECORDS)
        with pytest.raises(DataError, match=rf"'{tmp_path}/a{suffix}'"):
            open_source(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".tar.gz", ".tgz", ".json.gz"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_compressed_files_are_refused_with_the_fix_not_overlooked(suffix, in_folder, tmp_path):
    (tmp_path / f"train{suffix}").write_bytes(gzip.compress(TEXT))
    with pytest.raises(DataError, match="is gzip; unpack it"):
        open_source(tmp_path if in_folder else tmp_path / f"train{suffix}")


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"text": "text 0"}\n{"text": "text 1"}\n',
        b'{"text": "text 0"}\r\n{"text": "text 1"}\r\n',
        b'\n\r\n{"text": "text 0"}\n  \n\n{"text": "text 1"}\n\n',
        b'{"text": "text 0"}\n{"text": "text 1"}',
    ],
    ids=["byte order mark", "Windows lines", "empty lines", "no last newline"],
)
def test_what_editors_do_to_lines_does_not_matter(content, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert texts(open_source(tmp_path / "a.jsonl")) == ["text 0", "text 1"]


def test_a_byte_order_mark_before_an_array(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(RECORDS).encode())
    assert texts(open_source(tmp_path / "a.json")) == [f"text {i}" for i in range(5)]


def test_a_folder_or_glob_without_data_and_what_does_not_exist(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    for path, message in {
        tmp_path: r"is a folder without data; put files of .*\.arrayrecord",
        f"{tmp_path}/*.jsonl": "matches no file",
        tmp_path / "absent.jsonl": "No such file or directory; give a file, a folder or a glob",
        tmp_path / "notes.md": r"no format has the suffix '\.md', and it is no JSON; give a file of \.jsonl",
    }.items():
        with pytest.raises(DataError, match=message):
            open_source(path)


def test_a_folder_of_several_formats_and_an_unknown_split_are_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", RECORDS)
    write_tar(tmp_path / "train.tar", [("0.json", TEXT)])
    with pytest.raises(DataError, match=r"several formats: 1 of \.jsonl, 1 of \.tar; name some by a glob"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"no files of the split 'test'; its files: train\.jsonl, train\.tar"):
        open_source(tmp_path, "test")


@pytest.mark.parametrize("name", ["a", "a.txt", "a.data"])
def test_json_of_any_other_suffix_is_told_by_its_content(name, tmp_path):
    assert len(texts(open_source(write_jsonl(tmp_path / name, RECORDS)))) == 5
    assert len(texts(open_source(write_json(tmp_path / name, RECORDS)))) == 5


def test_a_damaged_array_is_one_error_with_its_place(tmp_path):
    path = write_json(tmp_path / "a.json", RECORDS)
    whole = path.read_text()
    path.write_text(whole.replace('"text 2"', "text 2"))
    with pytest.raises(DataError, match=r"no valid JSON in element 2, at byte \d+: Expecting value"):
        open_source(path)
    path.write_text(whole[: whole.index('"text 3"')])
    with pytest.raises(DataError, match="no valid JSON in element 3"):
        open_source(path)
    path.write_text(whole[: whole.index("},")] + "}")
    with pytest.raises(DataError, match="ends within its array, after element 0; it is truncated"):
        open_source(path)
    for text in ("", "  ", "[]"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"is empty|begins with neither"):
            open_source(path)


def test_an_object_with_several_lists_needs_a_split(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": RECORDS, "test": RECORDS[:2], "note": "é"}))
    with pytest.raises(DataError, match="has the lists train, test; name one of them as `split`"):
        open_source(path)
    assert len(open_source(path, "train")) == 5
    assert open_source(path, "test")[1].where == f"{path}.test[1]"


def test_a_tar_that_is_cut_or_out_of_order_is_refused_and_a_name_twice_is_a_bad_sample(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.json", TEXT), ("1.json", TEXT * 100), ("2.json", TEXT)])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"a\.tar' is no tar that can be read to its end"):
        open_source(path)
    write_tar(path, [("0.json", TEXT), ("1.json", TEXT), ("0.png", b"x")])
    with pytest.raises(DataError, match=r"of '0\.png' stand in two places \(samples 1 and 3\); .*--sort=name"):
        open_source(path)
    write_tar(path, [("0.json", TEXT), ("0.png", b"x"), ("0.png", b"y"), ("1.json", TEXT)])
    source = open_source(path)
    with pytest.raises(DataError, match=r"a\.tar:1 \(0\): two members are called '0\.png'"):
        source[0]
    assert source[1].text["messages"]


def test_a_sample_of_a_shard_that_names_no_member_of_it_is_bad(tmp_path):
    record = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
        "images": ["b.png"],
    }
    path = write_tar(tmp_path / "a.tar", [("0.json", json.dumps(record).encode()), ("0.png", b"x")])
    line = open_source(path)[0]
    with pytest.raises(
        DataError, match=r"a\.tar:1 \(0\): 'b\.png' is not among the media of the sample; it has 0\.png"
    ):
        parse_line(line.text, where=line.where, folder=line.folder)


def test_members_of_a_caption_shard(tmp_path):
    members = [("0.jpg", b"x"), ("0.txt", b"A cat."), ("1.jpg", b"y"), ("1.txt", b"\xff")]
    source = open_source(write_tar(tmp_path / "a.tar", members))
    assert source[0].text["messages"][-1] == {"role": "assistant", "content": "A cat."}
    with pytest.raises(DataError, match=r"a\.tar:2 \(1\.txt\): no UTF-8"):
        source[1]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow; install it: pip install 'hetjax\[parquet\]'"):
        open_source(tmp_path / "a.parquet")


def test_a_damaged_parquet_file_is_one_error(tmp_path):
    pytest.importorskip("pyarrow")
    path = write_parquet(tmp_path / "a.parquet", RECORDS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet' cannot be read: .*; get it anew"):
        open_source(path)


def test_a_list_may_have_any_name_and_an_object_with_other_keys_is_a_line(tmp_path):
    sample = json.dumps({"prompt": "?", "completion": "1"})
    (tmp_path / "a.json").write_text(json.dumps({"数据": [json.loads(sample)] * 3}))
    assert len(open_source(tmp_path / "a.json")) == 3
    (tmp_path / "b.json").write_text(f'{{"a": [{sample}], 5: [{sample}]}}')
    assert len(open_source(tmp_path / "b.json")) == 1  # a line, which is bad
