"""Several samples in one row: a balanced greedy knapsack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetjax.errors import DataError


def pack(
    needs: Sequence[Sequence[int]], room: Sequence[int], *, bins: int | None = None, spare: int = 0
) -> list[list[int]]:
    """Share samples out to rows, so that rows are about equally full: which samples each row gets.

    The longest first, each into the least full row that has room for it; one that finds none opens a further row. Rows
    without a sample are not listed, and samples of a row stand in their order.

    Args:
        needs: what each sample takes of every resource (tokens first, by which rows are compared).
        room: what a row has of each resource.
        bins: rows to begin with; without, as many as the first resource asks for, rounded up, and `spare` more.
        spare: rows beyond those that are needed at least; more of them make rows evener and emptier.

    Raises:
        DataError: a sample does not fit into an empty row.
    """
    amounts = np.asarray(needs, np.int64).reshape(len(needs), len(room))
    for sample, amount in enumerate(amounts):
        if np.any(amount > room):
            raise DataError(
                f"packing: sample {sample} takes {amount.tolist()}, but a row has room for {list(room)}; "
                "shorten it or make rows longer"
            )
    if bins is None:
        bins = -(-int(amounts[:, 0].sum()) // room[0]) + spare
    used = np.zeros((bins, len(room)), np.int64)
    rows: list[list[int]] = [[] for _ in range(bins)]
    for sample in np.argsort(-amounts[:, 0], kind="stable"):
        fits = np.all(used + amounts[sample] <= room, axis=1)
        if not fits.any():
            used, fits = np.pad(used, ((0, 1), (0, 0))), np.append(fits, True)
            rows.append([])
        row = int(np.argmin(np.where(fits, used[:, 0], np.iinfo(np.int64).max)))
        used[row] += amounts[sample]
        rows[row].append(int(sample))
    return [sorted(row) for row in rows if row]
