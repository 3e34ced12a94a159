"""Which of several options an answer chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WHOLE = re.compile(r"[(\[]?([A-Za-z])[)\].:,]?")
_FORMS = (
    re.compile(r"\banswer(?:\s+is)?\s*:?\s*[(\[]?([A-Z])\b(?!')", re.IGNORECASE),  # "the answer is (B)"
    re.compile(r"^[(\[]?([A-Z])[)\].:,](?:\s|$)"),  # "B. a cat"
    re.compile(r"[(\[]([A-Z])[)\]]"),  # "it is (B)"
)


def choice(answer: str, expected: Sequence[str]) -> float:
    """Return 1 where the answer chooses the expected option of a multiple choice, else 0.

    An option is a letter: alone ("B", "(b)", "B."), behind "answer is" or "answer:", ahead of its text ("B. a cat"), or
    in brackets; the first of these forms that is found counts, in it the last mention, as the parsers of benchmarks
    take it (Yue et al. 2024, "MMMU", section 4.1). An expected text without a letter is compared as a whole, without
    regard to case.
    """
    chosen = _letter(answer)
    return float(
        any(answer.lower() == each.lower() or (chosen is not None and chosen == _letter(each)) for each in expected)
    )


def _letter(text: str) -> str | None:
    whole = _WHOLE.fullmatch(text)
    if whole:
        return whole[1].upper()
    for form in _FORMS:
        found = form.findall(text)
        if found:
            return found[-1].upper()
    return None
