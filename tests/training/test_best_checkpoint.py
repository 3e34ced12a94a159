"""Which step is the best, by a number of the evaluations."""

import math

import pytest

from hetjax.config.eval_config import BestCheckpoint, EvalConfig
from hetjax.errors import ConfigError
from hetjax.evaluation.evaluator import asked_sets
from hetjax.training.best_checkpoint import BestStep

SETS = asked_sets({"a": {"sources": "a.jsonl", "metrics": ["exact_match", "wer"]}, "b": "b.jsonl"}, EvalConfig())


def steps_of(metric, *values, mode=None):
    best = BestStep(BestCheckpoint(metric=metric, mode=mode), SETS)
    return [step for step, value in enumerate(values, 1) if best.is_best(step, {metric: value})], best


@pytest.mark.parametrize(
    ("metric", "mode", "steps"),
    [
        ("eval/a/loss", None, [1, 2, 5]),
        ("eval/a/wer", None, [1, 2, 5]),
        ("eval/b/accuracy", None, [1, 3]),
        ("eval/a/loss", "max", [1, 3]),
        ("eval/b/accuracy", "min", [1, 2, 5]),
    ],
)
def test_less_is_better_of_losses_and_word_errors_and_more_of_the_rest_unless_the_mode_says_it(metric, mode, steps):
    assert steps_of(metric, 2.0, 1.0, 3.0, 3.0, 0.5, math.nan, mode=mode)[0] == steps


def test_a_run_goes_on_from_its_best_unless_another_number_is_asked_for_now():
    _, before = steps_of("eval/a/loss", 2.0, 1.0)
    same = BestStep(BestCheckpoint(metric="eval/a/loss"), SETS)
    same.resume(before.to_json())
    assert not same.is_best(3, {"eval/a/loss": 1.5}) and same.is_best(4, {"eval/a/loss": 0.5})
    other = BestStep(BestCheckpoint(metric="eval/b/loss"), SETS)
    other.resume(before.to_json())
    assert other.best is None and other.is_best(3, {"eval/b/loss": 9.0})
    nothing = BestStep(None, SETS)
    nothing.resume(before.to_json())
    assert nothing.to_json() is None and not nothing.is_best(3, {})


def test_a_number_that_no_evaluation_gives_is_refused_with_those_that_it_gives():
    with pytest.raises(ConfigError, match=r"metric is 'eval/loss', but an evaluation of this run gives eval/a/loss, "):
        BestStep(BestCheckpoint(metric="eval/loss"), SETS)
    with pytest.raises(ConfigError, match=r"data\.eval\.a\.metrics names the metric 'bleu'"):
        asked_sets({"a": {"sources": "a.jsonl", "metrics": ["bleu"]}}, EvalConfig())
