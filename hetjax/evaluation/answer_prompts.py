"""Answer held-out prompts, and measure the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hetjax.data import EvalBatch, Tokenizer
from hetjax.errors import DataError
from hetjax.generation.answer_text import answer_text
from hetjax.generation.generator import Answers, Generator
from hetjax.generation.stage_weights import Weights
from hetjax.metrics.measured import Measured
from hetjax.metrics.registry import Metric, total

# B batch · R new tokens


class Answered(NamedTuple):
    """One prompt and its answer.

    Attributes:
        where: Where its sample stands, "file:line".
        prompt: The prompt as text; media leave none.
        expected: The texts of which any is right.
        answer: What the model answers.
        measures: What each metric, by name, finds.
        group: Its group; None where there are none.
    """

    where: str
    prompt: str
    expected: tuple[str, ...]
    answer: str
    measures: Mapping[str, Measured]
    group: str | None = None


class Group(NamedTuple):
    """Prompts that are counted together: their numbers by metric, and how many they are."""

    scores: Mapping[str, float]
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult:
    """The answers of a model to held-out prompts, measured.

    Attributes:
        scores: The number of each metric over all `count` answers, by its name.
        count: Prompts answered.
        bad: Samples that the data skipped, each as "file:line: reason".
        answered: Every prompt with its answer, in order.
        groups: Those of each group, by its name in alphabetical order; none where the data has no groups.
    """

    scores: Mapping[str, float]
    count: int
    bad: tuple[str, ...]
    answered: tuple[Answered, ...]
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)


def answer_prompts(
    generator: Generator,
    weights: Weights,
    batches: Iterable[EvalBatch],
    tokenizer: Tokenizer,
    metrics: Sequence[Metric],
) -> EvalResult:
    """Answer every prompt and measure the answers, they and the expected ones stripped of white space at their ends.

    An answer ends at one of `tokenizer.stop_ids`. `weights` are those that `generator.prepare` made. Raises DataError
    without any sample.
    """
    answered: list[Answered] = []
    bad: list[str] = []
    for batch, ids in _read_one_late(generator, weights, batches):
        bad += batch.bad
        for row in range(batch.count):
            expected = tuple(text.strip() for text in batch.expected[row])
            answer = answer_text(ids[row], tokenizer).strip()
            prompt = batch.arrays[generator.sink]["tokens"][row, : batch.lengths[row]]
            answered.append(
                Answered(
                    where=batch.where[row],
                    prompt=tokenizer.decode(prompt),
                    expected=expected,
                    answer=answer,
                    measures={metric.name: metric(answer, expected) for metric in metrics},
                    group=batch.groups[row] if batch.groups else None,
                )
            )
    if not answered:
        raise DataError("there is no held-out sample to evaluate on; give an evaluation file with good samples")
    groups: dict[str, list[Answered]] = {}
    for each in answered:
        if each.group is not None:
            groups.setdefault(each.group, []).append(each)
    return EvalResult(
        scores=_scores(answered, metrics),
        count=len(answered),
        bad=tuple(bad),
        answered=tuple(answered),
        groups={name: Group(_scores(each, metrics), len(each)) for name, each in sorted(groups.items())},
    )


def _scores(answered: Sequence[Answered], metrics: Sequence[Metric]) -> dict[str, float]:
    return {metric.name: total(each.measures[metric.name] for each in answered).number for metric in metrics}


def _read_one_late(
    generator: Generator, weights: Weights, batches: Iterable[EvalBatch]
) -> Iterator[tuple[EvalBatch, Int[np.ndarray, "B R"]]]:
    """Yield each batch with its generated ids, read after the next batch is under way, so that devices stay busy."""
    before: tuple[EvalBatch, Answers] | None = None
    for number, batch in enumerate(batches):
        # Where answers are drawn, each batch has a seed of its own, the same in every evaluation.
        now = batch, generator.dispatch(weights, batch.arrays, batch.lengths, seed=number)
        if before is not None:
            yield before[0], before[1].read()
        before = now
    if before is not None:
        yield before[0], before[1].read()
