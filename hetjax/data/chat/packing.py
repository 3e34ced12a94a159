"""Pack several samples into one row: a balanced greedy knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetjax.errors import DataError


def pack(needs: Sequence[Sequence[int]], capacity: Sequence[int], *, bins: int | None = None) -> list[list[int]]:
    """Share samples out to about equally full rows, and return which samples each row gets.

    The longest first, each into the least full row that it fits into; one that finds none opens a further row. Rows
    without a sample are not listed, and samples of a row stand in their order.

    Args:
        needs: what each sample takes of every resource (tokens first, by which rows are compared).
        capacity: what a row has of each resource.
        bins: rows to begin with; without, as many as the first resource asks for, rounded up.

    Raises:
        DataError: a sample does not fit into an empty row.
    """
    amounts = np.asarray(needs, np.int64).reshape(len(needs), len(capacity))
    for sample, amount in enumerate(amounts):
        if np.any(amount > capacity):
            raise DataError(
                f"packing: sample {sample} takes {amount.tolist()}, but the capacity of a row is {list(capacity)}; "
                "shorten it or make rows longer"
            )
    if bins is None:
        bins = -(-int(amounts[:, 0].sum()) // capacity[0])
    used = np.zeros((bins, len(capacity)), np.int64)
    rows: list[list[int]] = [[] for _ in range(bins)]
    for sample in np.argsort(-amounts[:, 0], kind="stable"):
        fits = np.all(used + amounts[sample] <= capacity, axis=1)
        if not fits.any():
            used, fits = np.pad(used, ((0, 1), (0, 0))), np.append(fits, True)
            rows.append([])
        row = int(np.argmin(np.where(fits, used[:, 0], np.iinfo(np.int64).max)))
        used[row] += amounts[sample]
        rows[row].append(int(sample))
    return [sorted(row) for row in rows if row]
