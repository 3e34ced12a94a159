"""Read held-out samples with their answers, for the loss that they have."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import grain

from hetjax.data.bad_samples import BadSample, tried
from hetjax.data.chat import Sample
from hetjax.data.chat.collate import HostArrays
from hetjax.data.prefetch import read_ahead
from hetjax.data.reading import Source
from hetjax.data.sample_loader import SampleLoader


class LossBatch(NamedTuple):
    """Samples, one a row, as a step takes them.

    `arrays` holds by module and port what `hetjax.data.chat.make_arrays` makes for training. Rows behind the last
    sample repeat it, with loss weights of 0. `left_out` names the samples ahead that cannot be used, each as
    "file:line: reason"; arrays are None where none is left behind these.
    """

    arrays: HostArrays | None
    left_out: tuple[str, ...]


def loss_batches(loader: SampleLoader, source: Source, rows: int) -> Iterator[LossBatch]:
    """Return every sample of a source once, in its order, in batches of so many rows.

    Media are not moved, and rows not shared. A sample that does not fit into a row together with its answer is left
    out and named, however many there are.
    """
    samples = read_ahead(
        grain.MapDataset.range(len(source)),
        lambda index: tried(lambda: loader.load(source, index), source, index),
        workers=loader.config.workers,
        batch_size=rows,
    )
    return _batches(samples, loader, rows)


def _batches(
    samples: Generator[Sample | BadSample, None, None], loader: SampleLoader, rows: int
) -> Iterator[LossBatch]:
    good: list[Sample] = []
    bad: list[str] = []
    with contextlib.closing(samples):
        for sample in samples:
            if isinstance(sample, BadSample):
                bad.append(sample.reason)
                continue
            good.append(sample)
            if len(good) == rows:
                yield LossBatch(_arrays(good, loader, rows), tuple(bad))
                good, bad = [], []
        if good or bad:
            yield LossBatch(_arrays(good, loader, rows) if good else None, tuple(bad))


def _arrays(samples: Sequence[Sample], loader: SampleLoader, rows: int) -> HostArrays:
    filled = [[sample] for sample in (*samples, *[samples[-1]] * (rows - len(samples)))]
    arrays = loader.collate(filled, loader.processor.capacity)
    arrays["llm"]["loss_weights"][len(samples) :] = 0
    return arrays
