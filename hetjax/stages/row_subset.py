"""The rows of a global batch that one process has on its host.

B rows of the global batch
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from hetjax.errors import BatchError

_SHOWN = 8  # missing rows that an error spells out


@dataclasses.dataclass(frozen=True, eq=False)
class RowSubset:
    """A global host array of which this process holds only some rows (entries of the leading dim).

    It stands in for the whole array: `shape`, `dtype` and `ndim` are those of the whole, and slices are
    counted over the global rows, so that `jax.make_array_from_callback` may ask it for what its devices hold.
    numpy sees it as an array if it holds all rows.

    Args:
        values: the rows that it holds, [len(rows), ...].
        rows: their numbers in the global array, ascending.
        size: how many rows the global array has, B.

    Raises:
        BatchError: the rows are not ascending, not below `size`, or not as many as `values` has.
    """

    values: Shaped[np.ndarray, "rows ..."]
    rows: tuple[int, ...]
    size: int

    def __post_init__(self):
        check_rows(self.rows, self.size)
        if np.shape(self.values)[:1] != (len(self.rows),):
            raise BatchError(
                f"values of shape {np.shape(self.values)} are given for {len(self.rows)} rows; give a row each"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return (self.size, *self.values.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the whole array."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Number of dims of the whole array."""
        return self.values.ndim

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        """Return the rows of a slice without a step, by global number; further slices are of the other dims.

        Raises:
            BatchError: it does not hold some of these rows.
            TypeError: rows are asked for by anything but such a slice.
        """
        leading, *others = index if isinstance(index, tuple) else (index,)
        if not isinstance(leading, slice) or leading.step not in (None, 1):
            raise TypeError(f"rows of a RowSubset are taken by a slice start:stop, not by {leading!r}")
        start, stop, _ = leading.indices(self.size)
        stop = max(start, stop)
        # Ascending and distinct: as many as asked for means exactly those.
        low, high = bisect_left(self.rows, start), bisect_left(self.rows, stop)
        if high - low != stop - start:
            raise self._missing(start, stop)
        return self.values[(slice(low, high), *others)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Return the whole array; raises BatchError if it does not hold all rows."""
        return np.array(self[:], dtype=dtype, copy=copy)

    def _missing(self, start: int, stop: int) -> BatchError:
        missing = sorted(set(range(start, stop)) - set(self.rows))
        return BatchError(
            f"rows {start}:{stop} of {self.size} are asked for, but this process has not loaded {_listed(missing)}; "
            "load them too: rows_needed(...) names the rows that its devices take"
        )


def check_rows(rows: Sequence[int], size: int) -> None:
    """Raise BatchError unless `rows` are ascending row numbers of a batch of `size` rows."""
    # A bound on either side turns both into the one question whether the numbers ascend.
    if any(before >= after for before, after in zip((-1, *rows), (*rows, size), strict=True)):
        raise BatchError(f"rows must ascend from 0 to at most {size - 1} without repeats, but are {_listed(rows)}")


def _listed(rows: Sequence[int]) -> str:
    more = f", … ({len(rows)} rows)" if len(rows) > _SHOWN else ""
    return ", ".join(map(str, rows[:_SHOWN])) + more
