"""Padding of the batches of a run, and how unevenly they load the shards of its encoders.

An estimate: all rows have the largest shape and are filled from all inspected samples, however long a sample would wait
in training; media are not balanced, and the load of a shard is the rows of media in its part of the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from hetjax.data import SampleLoader
from hetjax.data.chat import RowUse
from hetjax.meshes import Layout
from hetjax.meshes.layout import BATCH_AXES
from hetjax.tools.data.shared_rows import shared_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchStatistics:
    """What the batches of some samples would be like, of rows of the largest shape, filled from all of these samples.

    Attributes:
        batches: how many there are.
        samples_per_row: on average.
        padding: by amount the part of the rows that nothing takes, 0 to 1.
        imbalance: by encoder the load of the fullest shard of the batch against the mean, where its layout has
            several; the mean over batches, as rows come, without balancing. A load is what media take of rows, not
            their cost, and a shard is cut from the whole batch, not from a microbatch.
    """

    batches: int
    samples_per_row: float
    padding: Mapping[str, float]
    imbalance: Mapping[str, float]


def batch_statistics(
    loader: SampleLoader, uses: Sequence[RowUse], placement: Mapping[str, Layout]
) -> BatchStatistics | None:
    """Return what the whole batches of these samples would be like; None where there is none."""
    batches = _batches(loader, uses)
    if not batches:
        return None
    capacity = loader.processor.capacity
    rows = [RowUse.total((uses[number] for number in row), like=capacity.most) for batch in batches for row in batch]
    padding = {"tokens": 1 - float(np.mean([row.tokens for row in rows])) / capacity.most.tokens}
    for modality in capacity.modalities.values():
        resource = modality.resources[0]
        if most := capacity.most.media[resource.name]:
            padding[resource.words] = 1 - float(np.mean([row.media[resource.name] for row in rows])) / most
    samples = sum(len(row) for batch in batches for row in batch)
    return BatchStatistics(
        batches=len(batches),
        samples_per_row=samples / len(rows),
        padding=padding,
        imbalance=_imbalance(loader, rows, placement),
    )


def _imbalance(loader: SampleLoader, rows: Sequence[RowUse], placement: Mapping[str, Layout]) -> dict[str, float]:
    size, found = loader.config.batch_size, {}
    for placeholder, modalities in loader.processor.capacity.encoders.items():
        layout = placement.get(placeholder.module)
        shards = 1 if layout is None else int(np.prod([getattr(layout, axis) for axis in BATCH_AXES]))
        if shards == 1 or size % shards:
            continue
        names = [modality.resources[0].name for modality in modalities]
        loads = np.asarray([sum(row.media[name] for name in names) for row in rows], float)
        by_shard = loads.reshape(-1, shards, size // shards).sum(axis=2)
        by_shard = by_shard[by_shard.any(axis=1)]
        if len(by_shard):
            found[placeholder.module] = float(np.mean(by_shard.max(axis=1) / by_shard.mean(axis=1)))
    return found


def _batches(loader: SampleLoader, uses: Sequence[RowUse]) -> list[list[list[int]]]:
    """Return which samples each row of each whole batch has, where rows are filled from all of them."""
    size, packed = loader.config.batch_size, loader.processor.config.packed
    rows = [[number] for number in range(len(uses))]
    if packed > 1 and uses:
        needs = np.asarray([use.amounts for use in uses], np.int64)
        rows = shared_rows(needs, loader.processor.capacity.most.amounts, most=packed)
    return [rows[first : first + size] for first in range(0, len(rows) - size + 1, size)]
