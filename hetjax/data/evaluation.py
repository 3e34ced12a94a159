"""Read held-out prompts with the answers that are expected."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Generator, Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Int32

from hetjax.data.bad_samples import BadSample, BadTally, tried
from hetjax.data.chat.collate import HostArrays
from hetjax.data.prefetch import read_ahead
from hetjax.data.reading import Source
from hetjax.data.sample_loader import Prompt, SampleLoader

# B batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """Prompts for a model to continue.

    `arrays` holds by module and port what `hetjax.data.chat.make_arrays` makes, without labels; "tokens" are padded
    after the prompt, and `lengths` is how many ids of each row are prompt. The first `count` rows are real and have
    in `expected` the texts of which any is right, in `where` where they stand ("file:line"); the rest of a last batch
    repeats the last sample. `groups` has the group of each of these, where answers are counted by groups. `bad` names
    the samples skipped, each as "file:line: reason".
    """

    arrays: HostArrays
    lengths: Int32[np.ndarray, B]
    expected: tuple[tuple[str, ...], ...]
    where: tuple[str, ...]
    count: int
    bad: tuple[str, ...]
    groups: tuple[str, ...] = ()


def eval_batches(
    loader: SampleLoader,
    batch_size: int,
    *,
    by: str | None = None,
    blank: Collection[str] = (),
    source: Source | None = None,
) -> Iterator[EvalBatch]:
    """Return every held-out sample once, in file order: those of `source`, or of all held-out sets.

    `by` is the key of samples whose value is their group. Media of the modalities in `blank` have no content: see
    `hetjax.data.rows.sample.Sample.blanked`.

    Bad samples are skipped under the same limit as in training.

    Raises:
        ConfigError: `config.eval` is not set.
        DataError: the file is missing or empty, or has too many bad samples (see `BadTally`).
    """
    config, source = loader.config, loader.held_out if source is None else source
    samples = read_ahead(
        grain.MapDataset.range(len(source)),
        lambda index: tried(lambda: loader.load_prompt(source, index, by=by, blank=blank), source, index),
        workers=config.workers,
        batch_size=batch_size,
    )
    tally = BadTally(path=source.path, samples=len(source), max_share=config.max_bad_share)
    return _batches(samples, tally, batch_size, loader)


def _batches(
    samples: Generator[Prompt | BadSample, None, None], tally: BadTally, batch_size: int, loader: SampleLoader
) -> Iterator[EvalBatch]:
    good: list[Prompt] = []
    bad: list[str] = []
    with contextlib.closing(samples):
        for sample in samples:
            if isinstance(sample, BadSample):
                bad.append(sample.reason)
                tally.skip(sample.reason)
                continue
            # A full batch waits for the next good sample, so that bad ones at the very end are named too.
            if len(good) == batch_size:
                yield _batch(good, bad, batch_size, loader)
                good, bad = [], []
            tally.good()
            good.append(sample)
        if good:
            yield _batch(good, bad, batch_size, loader)


def _batch(samples: Sequence[Prompt], bad: Sequence[str], batch_size: int, loader: SampleLoader) -> EvalBatch:
    filled = [*samples, *[samples[-1]] * (batch_size - len(samples))]
    prompts = loader.collate_prompts([prompt.sample for prompt in filled])
    return EvalBatch(
        arrays=prompts.arrays,
        lengths=prompts.lengths,
        expected=tuple(sample.expected for sample in samples),
        where=tuple(sample.where for sample in samples),
        count=len(samples),
        bad=tuple(bad),
        groups=tuple(sample.group for sample in samples if sample.group is not None),
    )
