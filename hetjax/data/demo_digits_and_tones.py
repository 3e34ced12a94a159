"""Write a dataset that nobody answers who does not see and hear: a handwritten digit, a telephone key tone, a question.

Every sample shows a scan of a digit (see `hetjax.data.demo_digits`), plays the tone of a telephone key (DTMF, ITU-T
Q.23: the frequencies of the key's row and of its column at once), and asks for the digit that is seen, for the key that
is heard, or for their sum. Without the pictures, or without the tones, no more than one answer in ten can be guessed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from hetjax.data.atomic_folder import write_whole
from hetjax.data.demo_digits import load_scans, scan_name, write_scans
from hetjax.errors import ConfigError

QUESTIONS = {"seen": "What do you see?", "heard": "What do you hear?", "sum": "What is their sum?"}
"""By the key "task" of a sample."""
KEYS = ("123", "456", "789", "*0#")
ROWS = (697, 770, 852, 941)
"""Hertz of each row of `KEYS`."""
COLUMNS = (1209, 1336, 1477)
"""Hertz of each column of `KEYS`."""
RATE = 8000
"""Samples a second of the files, as of a telephone; reading resamples them to what encoders take."""
# Seconds of a file and of the tone in it, amplitude of each frequency, deviation of the noise: lowest and highest.
_FILE, _TONE, _LEVEL, _NOISE = (0.28, 0.4), (0.1, 0.2), (0.06, 0.4), (0.002, 0.02)


def write_digits_and_tones(
    folder: str | os.PathLike[str], *, samples: int = 9000, held_out: int = 297, seed: int = 0
) -> Path:
    """Write `train.jsonl`, `heldout.jsonl`, `images/` and `tones/` into `folder`, and return it.

    `held_out` scans of the 1,797, drawn by `seed`, are in no sample of training; each of them is shown with all three
    questions. The `samples` of training show the other scans in turn, and ask at random. Every sample has a tone of its
    own.

    The folder appears whole or not at all. A folder that holds these very files already is left as it is.

    Raises:
        ConfigError: scikit-learn is not installed, `held_out` leaves no scan to either part, or there are no samples.
        DataError: `folder` holds other files, or cannot be written (a full disk, no permission).
    """
    scans, digits = load_scans()
    if not 0 < held_out < len(digits):
        raise ConfigError(f"held_out is {held_out}; give 1 to {len(digits) - 1} of the {len(digits)} scans")
    if samples < 1:
        raise ConfigError(f"samples is {samples}; give 1 or more")
    order = np.random.default_rng(seed).permutation(len(digits))
    held, trained = np.sort(order[:held_out]), order[held_out:]

    def write(partial: Path) -> None:
        write_scans(partial, scans)
        (partial / "tones").mkdir()
        tasks = list(QUESTIONS)
        asked = [(scan, task) for scan in held for task in tasks]
        lines = [_sample(partial, f"heldout-{i:05d}", *each, digits, (seed, 0, i)) for i, each in enumerate(asked)]
        (partial / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")
        drawn = np.random.default_rng((seed, 1)).integers(len(tasks), size=samples)
        asked = [(scan, tasks[task]) for scan, task in zip(np.resize(trained, samples), drawn, strict=True)]
        lines = [_sample(partial, f"train-{i:05d}", *each, digits, (seed, 1, i)) for i, each in enumerate(asked)]
        (partial / "train.jsonl").write_text("".join(lines), encoding="utf-8")

    return write_whole(folder, write, what="digits and tones")


def key_tone(key: int, random: np.random.Generator) -> Float32[np.ndarray, " samples"]:
    """Return the tone of a key at `RATE`, somewhere in a stretch of noise; all but its frequencies is random.

    The tone never fills the stretch: encoders take each band of the spectrum by how it changes over time.
    """
    row = next(i for i, keys in enumerate(KEYS) if str(key) in keys)
    samples, length = (int(random.uniform(*seconds) * RATE) for seconds in (_FILE, _TONE))
    wave = random.normal(0, random.uniform(*_NOISE), samples)
    start = int(random.integers(0, samples - length, endpoint=True))
    times = np.arange(length) / RATE
    for hertz in (ROWS[row], COLUMNS[KEYS[row].index(str(key))]):
        level, phase = random.uniform(*_LEVEL), random.uniform()
        wave[start : start + length] += level * np.sin(2 * np.pi * (hertz * times + phase))
    return wave.astype(np.float32)


def _sample(folder: Path, name: str, scan: int, task: str, digits: np.ndarray, seed: tuple[int, ...]) -> str:
    """Write the tone of a sample, and return its line of the dataset."""
    random = np.random.default_rng(seed)
    key, digit = int(random.integers(10)), int(digits[scan])
    soundfile.write(folder / "tones" / f"{name}.wav", key_tone(key, random), RATE)
    answer = {"seen": digit, "heard": key, "sum": digit + key}[task]
    messages = [{"role": "user", "content": QUESTIONS[task]}, {"role": "assistant", "content": str(answer)}]
    media = {"images": [f"images/{scan_name(scan)}"], "audios": [f"tones/{name}.wav"]}
    return json.dumps({"task": task, "messages": messages, **media}) + "\n"
