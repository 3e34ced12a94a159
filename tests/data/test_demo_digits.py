import errno
import json
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hetjax.data import DataConfig, TrainData, check_dataset, write_digits
from hetjax.data.chat import ProcessorConfig
from hetjax.errors import ConfigError, DataError
from tests.harness.sample_loaders import make_loader

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits") / "deep" / "digits")


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_scan_of_sklearn_is_there_once_with_its_pixels_and_its_name(digits):
    train, heldout = lines(digits, "train.jsonl"), lines(digits, "heldout.jsonl")
    assert (len(train), len(heldout)) == (1500, 297)
    written = []
    for line in [*train, *heldout]:
        user, assistant = line["messages"]
        assert user == {"role": "user", "content": "Which digit is this?"}
        with Image.open(digits / line["images"][0]) as image:
            assert image.mode == "L"
            written.append((np.rint(np.asarray(image) / 255 * 16).astype(int).tobytes(), assistant["content"]))
    data = load_digits()
    expected = [
        (scan.astype(int).tobytes(), WORDS[digit]) for scan, digit in zip(data.images, data.target, strict=True)
    ]
    assert sorted(written) == sorted(expected)
    images = [line["images"][0] for line in [*train, *heldout]]
    assert len(set(images)) == 1797


def test_the_split_is_fixed_by_the_seed_and_not_by_the_order_of_the_scans(digits, tmp_path):
    assert contents(write_digits(tmp_path / "again")) == contents(digits)
    other = write_digits(tmp_path / "other", held_out=100, seed=1)
    assert len(lines(other, "heldout.jsonl")) == 100
    held = {line["images"][0] for line in lines(digits, "heldout.jsonl")}
    assert not {line["images"][0] for line in lines(other, "heldout.jsonl")} <= held
    assert {line["messages"][1]["content"] for line in lines(digits, "heldout.jsonl")} == set(WORDS)


def test_the_same_digits_again_change_nothing_and_other_files_are_kept(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    write_digits(digits)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
    with pytest.raises(DataError, match="holds something other than these digits"):
        write_digits(digits, seed=1)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_run_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch, failure):
    save, calls = Image.Image.save, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) > 20:
            raise failure
        save(self, *args)

    monkeypatch.setattr(Image.Image, "save", failing)
    expected = DataError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left on device" if expected is DataError else None):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_folder_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "digits"):
        with pytest.raises(DataError, match="file"):
            write_digits(folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_without_sklearn_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'hetjax\[demo\]'"):
        write_digits(tmp_path / "digits")


@pytest.mark.parametrize("held_out", [0, 1797])
def test_a_split_with_an_empty_part_is_refused(tmp_path, held_out):
    with pytest.raises(ConfigError, match=f"held_out is {held_out}"):
        write_digits(tmp_path / "digits", held_out=held_out)


def test_a_step_finds_its_batch_of_digits_ready(digits):
    config = DataConfig(
        train=str(digits / "train.jsonl"), seq_len=64, batch_size=64, processor=ProcessorConfig(images=1)
    )
    loader = make_loader(config, image_size=32, per_image=4)
    assert check_dataset(loader.trained.joined, loader).bad == ()
    data, waits = TrainData(loader), []
    next(data)
    begin = time.perf_counter()
    for _ in range(7):
        next(data)
    made = (time.perf_counter() - begin) / 7  # seconds a batch takes without a step, on this machine now
    for _ in range(7):
        time.sleep(max(0.2, 3 * made))  # the step
        begin = time.perf_counter()
        next(data)
        waits.append(time.perf_counter() - begin)
    data.close()
    assert np.median(waits) < max(0.05, made / 2)
