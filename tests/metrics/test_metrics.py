"""Metrics of answers, each against published definitions or a small computation of another kind."""

import random
from fractions import Fraction

import numpy as np
import pytest

from hetjax.errors import ConfigError, DataError
from hetjax.metrics import Measured, register_metric, registered_metrics, registry
from hetjax.metrics.registry import find_metrics, total


def number(name: str, *pairs: tuple[str, str | list[str]]) -> float:
    (metric,) = find_metrics([name], "test")
    listed = [(answer, [expected] if isinstance(expected, str) else expected) for answer, expected in pairs]
    return total(metric(answer, expected) for answer, expected in listed).number


def edits(a, b) -> int:
    """The Levenshtein distance by its recurrence (Wagner and Fischer 1974)."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0, :] = range(len(a) + 1), range(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            swap = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            table[i, j] = min(swap, table[i - 1, j] + 1, table[i, j - 1] + 1)
    return int(table[-1, -1])


def test_exact_match_takes_any_of_the_expected_texts_letter_by_letter():
    assert number("exact_match", ("7", "7"), ("seven", "Seven"), ("b", ["a", "b"]), ("a b", "a  b")) == 0.5


def test_anls_follows_the_equation_of_its_paper():
    assert number("anls", ("Hello  World", "hello world")) == 1
    assert number("anls", ("hallo", "hello")) == pytest.approx(1 - 1 / 5)
    assert number("anls", ("abcd", "abxy")) == 0  # a distance of 0.5 is too far
    assert number("anls", ("abcd", ["zzzz", "abcx"])) == pytest.approx(0.75)
    draw = random.Random(0)
    for _ in range(50):
        said, wanted = ("".join(draw.choices("ab c", k=draw.randint(1, 8))).strip() or "a" for _ in range(2))
        plain = [" ".join(text.split()) for text in (said, wanted)]
        distance = edits(*plain) / max(map(len, plain))
        assert number("anls", (said, wanted)) == pytest.approx(1 - distance if distance < 0.5 else 0)


def test_wer_is_that_of_the_corpus():
    # One substitution and one deletion in six words, one insertion in two: 3 / 8, not the mean of 2/6 and 1/2.
    pairs = [("the cat sit on mat", "the cat sat on the mat"), ("good old day", "good day")]
    assert number("wer", *pairs) == pytest.approx(3 / 8)
    draw = random.Random(1)
    words = [[draw.choices("xyz", k=draw.randint(1, 7)) for _ in range(2)] for _ in range(40)]
    want = sum(edits(said, wanted) for said, wanted in words) / sum(len(wanted) for _, wanted in words)
    assert number("wer", *((" ".join(said), " ".join(wanted)) for said, wanted in words)) == pytest.approx(want)
    assert number("wer", ("a b", ["x y z", "a c"])) == 0.5
    assert number("wer", ("", "")) == 0


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("105", "100", 1), ("105.1", "100", 0), ("95", "100", 1), ("-95", "-100", 1), ("0.01", "0", 0), ("0", "0", 1),
        ("42%", "0.42", 1), ("1,050", "1000", 1), ("Blue", "blue", 1), ("blue", "red", 0), ("5", "five", 0),
    ],
)  # fmt: skip
def test_relaxed_accuracy_is_within_five_percent_of_numbers_and_exact_of_texts(said, wanted, right):
    assert number("relaxed_accuracy", (said, wanted)) == right


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("B", "B", 1), ("(b)", "B", 1), ("B. a cat", "B", 1), ("The answer is (C).", "C", 1), ("Answer: D", "(D)", 1),
        ("It must be (A), or rather (B)", "B", 1), ("A cat", "A", 0), ("no idea", "A", 0), ("C", "B", 0),
        ("Yes", "yes", 1), ("B) two", "B) two", 1), ("I see a dog", "I", 0),
    ],
)  # fmt: skip
def test_choice_finds_the_letter_that_an_answer_chooses(said, wanted, right):
    assert number("choice", (said, wanted)) == right


def cells(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def test_box_iou_counts_the_cells_of_a_grid():
    draw = random.Random(2)
    for _ in range(40):
        pair = [sorted(draw.sample(range(10), 2)) + sorted(draw.sample(range(10), 2)) for _ in range(2)]
        said, wanted = ((left, top, right, bottom) for left, right, top, bottom in pair)
        a, b = cells(said), cells(wanted)
        want = Fraction(len(a & b), len(a | b))
        assert number("box_iou", (f"the box is {list(said)}", str(wanted))) == pytest.approx(float(want))
        assert number("box_accuracy", (str(said), str(wanted))) == (want >= Fraction(1, 2))
    assert number("box_iou", ("none", "[0, 0, 1, 1]")) == 0
    assert number("box_iou", ("[3, 3, 1, 1]", "[0, 0, 4, 4]")) == 0
    with pytest.raises(DataError, match=r"'a dog' has no box; .* four numbers"):
        number("box_iou", ("[0, 0, 1, 1]", "a dog"))


def test_a_program_registers_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_METRICS", dict(registry._METRICS))
    register_metric("letters", lambda answer, expected: Measured(len(answer), len(expected[0])))
    register_metric("empty", lambda answer, expected: not answer, higher_is_better=False)
    assert registered_metrics()[-2:] == ("letters", "empty")
    assert number("letters", ("ab", "abcd"), ("", "a")) == 2 / 5 and number("empty", ("ab", "c"), ("", "a")) == 0.5
    for name, problem in (("anls", "taken"), ("accuracy", "taken"), ("loss", "taken"), ("a/b", "a meaning in the log")):
        with pytest.raises(ConfigError, match=f"cannot be called '{name}': .*{problem}"):
            register_metric(name, lambda answer, expected: 0.0)


def test_unknown_and_missing_ones_are_refused_with_the_way_out(monkeypatch):
    with pytest.raises(ConfigError, match=r"eval\.metrics names the metric 'bleu'; there are exact_match, anls"):
        find_metrics(["bleu"], "eval.metrics")
    with pytest.raises(ConfigError, match="names a metric twice: wer, wer"):
        find_metrics(["wer", "wer"], "eval.metrics")
    monkeypatch.setattr(registry, "_is_installed", lambda package: False)
    with pytest.raises(ConfigError, match=r"'wer', which needs rapidfuzz: pip install 'hetjax\[metrics\]'"):
        find_metrics(["exact_match", "wer"], "eval.metrics")
