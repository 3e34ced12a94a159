"""Write a real dataset that needs no download: handwritten digits with a question and an answer each.

The scans are the test part of the Optical Recognition of Handwritten Digits set (E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, 1998), which scikit-learn carries: 1,797 images of 8 x 8
pixels in grey levels 0 to 16.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from hetjax.data.atomic_folder import write_whole
from hetjax.errors import ConfigError

QUESTION = "Which digit is this?"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digits(folder: str | os.PathLike[str], *, held_out: int = 297, seed: int = 0) -> Path:
    """Write `train.jsonl`, `heldout.jsonl` and `images/` into `folder`, and return it.

    `seed` draws the `held_out` samples from all 1,797 at random; the rest are for training. Each PNG is
    8-bit grey with the 8 x 8 pixels of the scan, ink white (16 becomes 255): the loader resizes anyway,
    so that a larger file would hold nothing more.

    The folder appears whole or not at all. A folder that holds these very files already is left as it is.

    Raises:
        ConfigError: scikit-learn is not installed, or `held_out` leaves one part empty.
        DataError: `folder` holds other files, or cannot be written (a full disk, no permission).
    """
    scans, digits = load_scans()
    if not 0 < held_out < len(digits):
        raise ConfigError(f"held_out is {held_out}; give 1 to {len(digits) - 1} of the {len(digits)} samples")
    order = np.random.default_rng(seed).permutation(len(digits))
    parts = {"heldout.jsonl": np.sort(order[:held_out]), "train.jsonl": np.sort(order[held_out:])}

    def write(partial: Path) -> None:
        write_scans(partial, scans)
        for name, indices in parts.items():
            (partial / name).write_text("".join(_line(i, digits[i]) for i in indices), encoding="utf-8")

    return write_whole(folder, write, what="digits")


def load_scans() -> tuple[UInt8[np.ndarray, "N 8 8"], Int[np.ndarray, N]]:
    """Return the 1,797 scans, ink white, and the digits they show. Raises ConfigError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("the digits demo needs scikit-learn; pip install 'hetjax[demo]'") from error
    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target


def write_scans(folder: Path, scans: UInt8[np.ndarray, "N 8 8"]) -> None:
    """Write all scans to `images/` in a folder, each under its `scan_name`."""
    (folder / "images").mkdir()
    for i, scan in enumerate(scans):
        Image.fromarray(scan).save(folder / "images" / scan_name(i))


def scan_name(index: int) -> str:
    """Return the name of the file of a scan."""
    return f"{index:04d}.png"


def _line(index: int, digit: int) -> str:
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": NAMES[digit]}]
    return json.dumps({"messages": messages, "images": [f"images/{scan_name(index)}"]}) + "\n"
