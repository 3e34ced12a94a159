"""The metrics by name, and how the measures of single answers become one number."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from hetjax.errors import ConfigError
from hetjax.metrics.boxes import box_accuracy, box_iou
from hetjax.metrics.choices import choice
from hetjax.metrics.edits import anls, wer
from hetjax.metrics.matches import exact_match, relaxed_accuracy
from hetjax.metrics.measured import Measured

Measure = Callable[[str, Sequence[str]], Measured | float]
"""From an answer and the texts of which any is right to a number, or to a `Measured` where answers weigh unlike."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to measure answers.

    Attributes:
        name: its name in settings.
        key: its name in the log, behind "eval/".
        measure: measures one answer, both sides stripped of white space at their ends.
        higher_is_better: whether of two runs the one with the higher number is better.
        needs: the package that it needs, of the extra `metrics`; None for none.
    """

    name: str
    key: str
    measure: Measure
    higher_is_better: bool = True
    needs: str | None = None

    def __call__(self, answer: str, expected: Sequence[str]) -> Measured:
        """Measure one answer against the texts of which any is right."""
        found = self.measure(answer, expected)
        return found if isinstance(found, Measured) else Measured(float(found), 1.0)


class Total(NamedTuple):
    """Measures added up; the number of a metric is the sum of values over the sum of weights."""

    value: float
    weight: float

    @property
    def number(self) -> float:
        """Return the number of the metric; 0 where nothing weighs anything and nothing was wrong."""
        return self.value / self.weight if self.weight else self.value


def total(measures: Iterable[Measured]) -> Total:
    """Add measures up."""
    values, weights = zip(*measures, strict=True)
    return Total(sum(values), sum(weights))


_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="exact_match", key="accuracy", measure=exact_match),
        Metric(name="anls", key="anls", measure=anls, needs="rapidfuzz"),
        Metric(name="wer", key="wer", measure=wer, higher_is_better=False, needs="rapidfuzz"),
        Metric(name="relaxed_accuracy", key="relaxed_accuracy", measure=relaxed_accuracy),
        Metric(name="choice", key="choice", measure=choice),
        Metric(name="box_iou", key="box_iou", measure=box_iou),
        Metric(name="box_accuracy", key="box_accuracy", measure=box_accuracy),
    )
}


def register_metric(name: str, measure: Measure, *, higher_is_better: bool = True) -> None:
    """Make a metric of your own known by a name, which `eval.metrics` and held-out sets may then give.

    Args:
        name: its name, in settings and behind "eval/" in the log.
        measure: from an answer and the texts of which any is right, both stripped, to a number, whose mean over all
            answers is logged; or to `Measured(value, weight)`, whose values are divided by the sum of the weights.
        higher_is_better: whether a higher number is better, which `best_checkpoint` goes by.

    Raises ConfigError for a name that a metric has, or that stands for something else in the log.
    """
    taken = {*_METRICS, *(metric.key for metric in _METRICS.values()), "loss"}
    if name in taken or "/" in name or not name:
        raise ConfigError(
            f"a metric cannot be called {name!r}: {'/ has a meaning in the log' if '/' in name else 'that is taken'}; "
            "choose another name"
        )
    _METRICS[name] = Metric(name=name, key=name, measure=measure, higher_is_better=higher_is_better)


def registered_metrics() -> tuple[str, ...]:
    """Return the names of all metrics."""
    return tuple(_METRICS)


def find_metrics(names: Sequence[str], where: str) -> tuple[Metric, ...]:
    """Return metrics by name. Raises ConfigError, opened by `where`, for one that is unknown or cannot be computed."""
    for name in names:
        if name not in _METRICS:
            raise ConfigError(
                f"{where} names the metric {name!r}; there are {', '.join(_METRICS)}. A program adds its own with "
                "hetjax.metrics.register_metric"
            )
        needs = _METRICS[name].needs
        if needs is not None and not _is_installed(needs):
            raise ConfigError(f"{where} names the metric {name!r}, which needs {needs}: pip install 'hetjax[metrics]'")
    if len(set(names)) < len(names):
        raise ConfigError(f"{where} names a metric twice: {', '.join(names)}")
    return tuple(_METRICS[name] for name in names)


def _is_installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True
