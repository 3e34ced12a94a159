"""How far an answer is from the expected text, in edits: of letters for documents, of words for speech."""

from __future__ import annotations

from collections.abc import Sequence

from hetjax.metrics.measured import Measured

THRESHOLD = 0.5


def anls(answer: str, expected: Sequence[str]) -> float:
    """Return the average normalized Levenshtein similarity (ANLS) of one answer: the best over the expected texts.

    Biten et al. 2019, "Scene Text Visual Question Answering", equation 1: 1 - d where d, the edits of letters over the
    length of the longer text, is below 0.5, else 0. Case and the number of blanks do not matter, as in the evaluation
    of DocVQA (Mathew et al. 2021).
    """
    from rapidfuzz.distance import Levenshtein  # of the extra `metrics`

    distances = [Levenshtein.normalized_distance(_plain(answer), _plain(each)) for each in expected]
    return max(1 - distance if distance < THRESHOLD else 0.0 for distance in distances)


def wer(answer: str, expected: Sequence[str]) -> Measured:
    """Return the edits of words (substitutions, deletions, insertions), weighed by the expected words.

    Over all answers that is the word error rate (WER) of a corpus, as NIST counts it: (S + D + I) / N. Words are what
    blanks separate, compared as they are written. Of several expected texts the one with the least rate counts.
    """
    from rapidfuzz.distance import Levenshtein

    words = answer.split()
    found = [Measured(Levenshtein.distance(words, each.split()), len(each.split())) for each in expected]
    return min(found, key=lambda measured: measured.value / max(measured.weight, 1))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
