"""Whether an answer is one that is expected: the same text, or nearly the same number."""

from __future__ import annotations

from collections.abc import Sequence

TOLERANCE = 0.05


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """Return 1 where the answer is one of the expected texts, letter by letter, else 0."""
    return float(answer in expected)


def relaxed_accuracy(answer: str, expected: Sequence[str]) -> float:
    """Return 1 where the answer is a number within 5 % of an expected one, or else the same text but for case.

    As questions about charts are counted: Masry et al. 2022, "ChartQA", section 5.1, after Methani et al. 2020,
    "PlotQA". A percent sign divides by 100; a text is compared without regard to case. An expected 0 takes 0 alone.
    """
    return float(any(_is_near(answer, each) for each in expected))


def _is_near(answer: str, expected: str) -> bool:
    said, wanted = _number(answer), _number(expected)
    if said is None or wanted is None:
        return answer.lower() == expected.lower()
    return abs(said - wanted) <= TOLERANCE * abs(wanted)


def _number(text: str) -> float | None:
    try:
        return float(text.removesuffix("%").replace(",", "")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
