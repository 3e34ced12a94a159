"""hetjax demo-data digits: a real dataset that needs no download."""

from __future__ import annotations

from hetjax.data import JsonlSource, write_digits
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
