"""Samples that are read and in no batch yet, and which of them make the next one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hetjax.data.rows.packing import best_fit_rows, spread_rows
from hetjax.data.rows.sample import RowUse, Sample
from hetjax.data.run_shapes import rank_of


class Taken(NamedTuple):
    """The samples of a batch: of which of the shapes its rows are, their samples, and the oldest one's position."""

    rank: int
    rows: list[list[Sample]]
    oldest: int


class Waiting:
    """Samples by their position in the stream, and the next batch of them.

    A sample is of the smallest shape that holds it, or where rows are packed, that holds a row full of samples like it.
    A batch is due once samples of one shape fill all its rows, with `window` more to choose from where rows are packed.

    Args:
        shapes: of a row, the one of the least work first; the last one holds every sample.
        rows: of a batch.
        most: samples that a row may have.
        window: samples that still wait when a packed batch is chosen.
    """

    def __init__(self, shapes: Sequence[RowUse], *, rows: int, most: int, window: int):
        self._shapes, self._rows, self._most, self._window = shapes, rows, most, window
        self._samples: dict[int, Sample] = {}
        self._ranks: dict[int, int] = {}
        self._totals = [[0] * len(shape.amounts) for shape in shapes]
        self._counts = [0] * len(shapes)

    def copy(self) -> Waiting:
        """Return the same samples, waiting apart."""
        other = copy.copy(self)
        other._samples, other._ranks = dict(self._samples), dict(self._ranks)
        other._totals, other._counts = [list(totals) for totals in self._totals], list(self._counts)
        return other

    @property
    def samples(self) -> Mapping[int, Sample]:
        """Return the samples by their positions in the stream, the oldest first."""
        return self._samples

    def add(self, position: int, sample: Sample) -> None:
        """Add the sample of a position behind all that were added before."""
        rank = rank_of(sample.use, self._shapes, packed=self._most > 1)
        self._samples[position], self._ranks[position] = sample, rank
        self._count(rank, sample, 1)

    def take(self, *, ended: bool) -> Taken | None:
        """Take out the samples of the next batch; None where none is due. At the end of the data the rest is taken.

        Of several shapes that are due it is the one whose oldest sample has waited longest. What is left at the end is
        too few for a batch. A batch of no rows is always due.
        """
        if not self._rows:
            return Taken(0, [], 0)
        due = self._due(0 if ended else self._window)
        if due:
            oldest = {rank: position for position, rank in reversed(self._ranks.items()) if rank in due}
            return self._taken(min(due, key=oldest.__getitem__))
        return self._taken(max(self._ranks.values())) if ended and len(self._samples) >= self._rows else None

    def _due(self, window: int) -> list[int]:
        """Return the shapes of which samples fill all rows, and leave so many waiting where rows are packed."""
        # Asked for every sample: plain numbers are faster than arrays of so few.
        due, waits = [], sum(self._counts)
        for rank, shape in enumerate(self._shapes):
            rows = self._counts[rank] / self._most
            if self._most > 1:
                amounts = zip(self._totals[rank], shape.amounts, strict=True)
                rows = max(rows, *(total / most for total, most in amounts if most))
            if rows >= self._rows and (self._most == 1 or waits - self._counts[rank] * self._rows / rows >= window):
                due.append(rank)
        return due

    def _taken(self, rank: int) -> Taken:
        positions = [position for position, own in self._ranks.items() if own <= rank]
        needs = np.asarray([self._samples[position].use.amounts for position in positions], np.int64)
        rows = best_fit_rows(
            needs,
            self._shapes[rank].amounts,
            rows=self._rows,
            most=self._most,
            ranks=np.asarray([self._ranks[position] for position in positions]),
        )
        rows = spread_rows(rows, needs[:, 0], self._rows)
        oldest = positions[min(min(row) for row in rows)]
        return Taken(rank, [[self._remove(positions[sample]) for sample in row] for row in rows], oldest)

    def _remove(self, position: int) -> Sample:
        sample, rank = self._samples.pop(position), self._ranks.pop(position)
        self._count(rank, sample, -1)
        return sample

    def _count(self, rank: int, sample: Sample, step: int) -> None:
        self._counts[rank] += step
        for place, amount in enumerate(sample.use.amounts):
            self._totals[rank][place] += step * amount
