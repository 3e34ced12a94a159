"""The digits and tones: what is seen, heard and asked, and what of it training never meets."""

import json

import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.datasets import load_digits

from hetjax.data import write_digits_and_tones
from hetjax.data.demo_digits_and_tones import RATE, key_tone
from hetjax.errors import ConfigError, DataError

# The keypad of ITU-T Q.23, written out.
HERTZ = {
    1: (697, 1209), 2: (697, 1336), 3: (697, 1477), 4: (770, 1209), 5: (770, 1336), 6: (770, 1477),
    7: (852, 1209), 8: (852, 1336), 9: (852, 1477), 0: (941, 1336),
}  # fmt: skip
SIZES = dict(samples=120, held_out=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_digits_and_tones(tmp_path_factory.mktemp("made") / "digits_and_tones", **SIZES)


def lines(folder, part):
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]


def key_heard(wave):
    """The key whose two frequencies carry most of a wave's power."""
    power = np.abs(np.fft.rfft(wave, 8 * RATE)) ** 2  # an eighth of a hertz from bin to bin
    low, high = (
        max(band, key=lambda hertz: power[8 * hertz - 20 : 8 * hertz + 20].sum())
        for band in ((697, 770, 852, 941), (1209, 1336, 1477))
    )
    return next(key for key, pair in HERTZ.items() if pair == (low, high))


def test_every_tone_has_the_two_frequencies_of_its_key():
    for key in range(10):
        for seed in range(5):
            wave = key_tone(key, np.random.default_rng(seed))
            assert key_heard(wave) == key
            assert 0.28 * RATE - 1 <= len(wave) <= 0.4 * RATE and np.abs(wave).max() < 1
    power = np.abs(np.fft.rfft(key_tone(0, np.random.default_rng(0)), 8 * RATE)) ** 2
    peaks = [np.argmax(power[8 * start : 8 * stop]) / 8 + start for start, stop in ((600, 1050), (1100, 1600))]
    np.testing.assert_allclose(peaks, HERTZ[0], atol=4)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_answers_are_what_the_scan_shows_and_the_tone_says(folder, part):
    data = load_digits()
    digit_of = {scan.tobytes(): digit for scan, digit in zip(data.images.astype(int), data.target, strict=True)}
    for sample in lines(folder, part):
        with Image.open(folder / sample["images"][0]) as image:
            digit = digit_of[np.rint(np.asarray(image) / 255 * 16).astype(int).tobytes()]
        wave, rate = soundfile.read(folder / sample["audios"][0])
        assert rate == RATE
        key, (asked, said) = key_heard(wave), sample["messages"]
        question, answer = {
            "seen": ("What do you see?", digit),
            "heard": ("What do you hear?", key),
            "sum": ("What is their sum?", digit + key),
        }[sample["task"]]
        assert (asked, said) == ({"role": "user", "content": question}, {"role": "assistant", "content": str(answer)})


def test_held_out_scans_are_asked_all_three_questions_and_never_trained_on(folder):
    train, heldout = lines(folder, "train"), lines(folder, "heldout")
    assert (len(train), len(heldout)) == (120, 3 * 40)
    held = [sample["images"][0] for sample in heldout]
    assert len(set(held)) == 40 and not set(held) & {sample["images"][0] for sample in train}
    assert {(sample["images"][0], sample["task"]) for sample in heldout} == {
        (scan, task) for scan in held for task in ("seen", "heard", "sum")
    }
    assert {sample["task"] for sample in train} == {"seen", "heard", "sum"}


def test_every_sample_has_a_tone_of_its_own(folder):
    waves = [
        (folder / sample["audios"][0]).read_bytes() for part in ("train", "heldout") for sample in lines(folder, part)
    ]
    assert len(set(waves)) == len(waves) == 240
    assert len({len(wave) for wave in waves}) > 100  # their lengths say nothing


def test_a_seed_makes_the_same_files_and_another_one_others(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_digits_and_tones(folder, **SIZES) == folder  # compares every file
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(DataError, match="holds something other than these digits and tones"):
        write_digits_and_tones(folder, **SIZES, seed=1)


def test_counts_that_leave_a_part_empty_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="held_out is 1797"):
        write_digits_and_tones(tmp_path / "none", held_out=1797)
    with pytest.raises(ConfigError, match="samples is 0"):
        write_digits_and_tones(tmp_path / "none", samples=0)
