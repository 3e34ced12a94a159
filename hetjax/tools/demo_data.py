"""hetjax demo-data: datasets that need no download."""

from __future__ import annotations

from hetjax.data import JsonlSource, write_digits, write_digits_and_tones, write_shapes
from hetjax.tools.outcome import Outcome


def digits(*, out: str = "data/digits") -> Outcome:
    """Write 1,797 handwritten digits, each with a question and an answer, as PNG and JSONL files.

    A folder that holds these very files already is left as it is.

    Args:
        out: Folder that is made.
    """
    folder = write_digits(out)
    counts = {part: len(JsonlSource(folder / f"{part}.jsonl")) for part in ("train", "heldout")}
    return Outcome(
        numbers={"folder": str(folder), **counts},
        shown=(f"{folder}: {counts['train']} samples to train on, {counts['heldout']} held out",),
    )


def shapes(*, out: str = "data/shapes", samples: int = 1200, seed: int = 0) -> Outcome:
    """Draw small images, tones and videos, each with a question and an answer, as PNG, WAV, MP4 and JSONL files.

    A folder that holds these very files already is left as it is.

    Args:
        out: Folder that is made.
        samples: Conversations, a sixth of which is held out.
        seed: Seed of what is drawn.
    """
    folder = write_shapes(out, samples=samples, seed=seed)
    counts = {part: len(JsonlSource(folder / f"{part}.jsonl")) for part in ("train", "heldout")}
    return Outcome(
        numbers={"folder": str(folder), **counts},
        shown=(f"{folder}: {counts['train']} samples to train on, {counts['heldout']} held out",),
    )


def digits_and_tones(*, out: str = "data/digits_and_tones", samples: int = 9000, seed: int = 0) -> Outcome:
    """Write handwritten digits with telephone key tones and questions for both, as PNG, WAV and JSONL files.

    A folder that holds these very files already is left as it is.

    Args:
        out: Folder that is made.
        samples: Conversations to train on; 891 more are held out, three for each of 297 scans.
        seed: Seed of what is held out, asked and played.
    """
    folder = write_digits_and_tones(out, samples=samples, seed=seed)
    counts = {part: len(JsonlSource(folder / f"{part}.jsonl")) for part in ("train", "heldout")}
    return Outcome(
        numbers={"folder": str(folder), **counts},
        shown=(f"{folder}: {counts['train']} samples to train on, {counts['heldout']} held out",),
    )
