"""Measure the exact-match accuracy of generated answers on held-out prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hetjax.data import EvalBatch, Tokenizer
from hetjax.errors import DataError
from hetjax.generation.generator import Answers, Generator, Weights
from hetjax.state.train_state import TrainState

# B batch · R new tokens


class EvalSample(NamedTuple):
    """One prompt as text (images leave none), the answer in the data and the answer of the model."""

    prompt: str
    expected: str
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult:
    """The answers of a model to held-out prompts, compared with the expected ones.

    Attributes:
        accuracy: Share of `count` answers that equal the expected one, from 0 to 1.
        count: Prompts answered.
        bad: Samples that the data skipped, each as "file:line: reason".
        samples: The first few, for display.
    """

    accuracy: float
    count: int
    bad: tuple[str, ...]
    samples: tuple[EvalSample, ...]


def evaluate(
    generator: Generator,
    state: TrainState,
    batches: Iterable[EvalBatch],
    tokenizer: Tokenizer,
    *,
    shown: int = 8,
) -> EvalResult:
    """Answer every prompt and compare with the expected answer, both stripped of white space at their ends.

    An answer ends at one of `tokenizer.stop_ids`. `state` stays valid; its weights are cast once. At most `shown`
    samples are kept for display. Raises DataError without any sample.
    """
    right, count = 0, 0
    bad: list[str] = []
    samples: list[EvalSample] = []
    for batch, ids in _read_one_late(generator, generator.prepare(state), batches):
        bad += batch.bad
        for row in range(batch.count):
            expected, answer = batch.answers[row].strip(), answer_text(ids[row], tokenizer).strip()
            right += answer == expected
            if len(samples) < shown:
                prompt = batch.arrays[generator.sink]["tokens"][row, : batch.lengths[row]]
                samples.append(EvalSample(tokenizer.decode(prompt), expected, answer))
        count += batch.count
    if count == 0:
        raise DataError("there is no held-out sample to evaluate on; give an evaluation file with good samples")
    return EvalResult(accuracy=right / count, count=count, bad=tuple(bad), samples=tuple(samples))


def answer_text(ids: Int[np.ndarray, R], tokenizer: Tokenizer) -> str:
    """Return the text of generated ids up to the first that ends an answer."""
    return tokenizer.decode(ids[: answer_length(ids, tokenizer)])


def answer_length(ids: Int[np.ndarray, R], tokenizer: Tokenizer) -> int:
    """Return how many generated ids come before the first that ends an answer; all where none does."""
    ends = np.flatnonzero(np.isin(ids, tokenizer.stop_ids))
    return int(ends[0]) if len(ends) else len(ids)


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
