"""A global batch in host memory, and how full it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from hetjax.data.rows.sample import RowUse
from hetjax.stages.row_subset import RowSubset


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostBatch:
    """One global batch in host memory, or those of its rows that this process needs.

    Attributes:
        arrays: by module and port what `hetjax.data.chat.make_arrays` makes: numpy arrays, or a `RowSubset` of each
            where a process loads certain rows only. "routes" are there where media are balanced
            (`hetjax.stages.routes`).
        epoch: the pass over the data, from 0, in which the batch begins; a batch may end in the next one.
        bad: the samples whose turn it was that cannot be used, each as "file:line: reason".
        samples: samples in the batch.
        use: what they take of it, without padding. A process that reads some rows alone takes these for all.
        capacity: what all its rows have.
        metrics: numbers to log with the step: how even balanced media are.
    """

    arrays: Mapping[str, Mapping[str, np.ndarray | RowSubset]]
    epoch: int
    bad: tuple[str, ...]
    samples: int
    use: RowUse
    capacity: RowUse
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def padding(self) -> dict[str, float]:
        """Return the share of padding in the tokens, and in every resource that rows have for media, from 0 to 1."""
        media = {name: (self.use.media[name], most) for name, most in self.capacity.media.items() if most}
        amounts = {"tokens": (self.use.tokens, self.capacity.tokens), **media}
        return {name: 1 - used / most for name, (used, most) in amounts.items()}
