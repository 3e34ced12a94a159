"""Choose a small set of shapes for the rows of a run, from what its samples take."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# N samples · R resources of a row · K shapes · G groups of samples of about the same size

GROUPS = 96
"""Groups of samples that are told apart, of about the same weight."""


class ShapeChoice(NamedTuple):
    """Shapes of rows, and the work that samples come to with them.

    Attributes:
        shapes: amounts of each resource, the shape of the least work first; the last one is the capacity.
        work: what all samples come to, each in the shape that it gets.
    """

    shapes: list[tuple[int, ...]]
    work: float


def choose_shapes(
    needs: Int[np.ndarray, "N R"],
    weights: Float[np.ndarray, " N"],
    *,
    capacity: Sequence[int],
    units: Sequence[int],
    costs: Sequence[float],
    most: int,
) -> ShapeChoice:
    """Return at most so many shapes, into one of which each sample fits, with the least padded work.

    The samples are put in an order, by their work or by what they take of one resource, and the order is cut into runs,
    each with a shape as large as the largest of its samples, by dynamic programming over the last cut: with one
    resource that is the best choice there is, with several the best of these orders. The work of a shape is the sum of
    its amounts, each times its cost.

    Args:
        needs: what each sample takes of every resource, at most `capacity`.
        weights: how many rows a sample counts for.
        capacity: the largest shape, which is always one of them.
        units: amounts of a shape are whole multiples of these, which divide the capacity.
        costs: work of one unit of amount of each resource.
        most: shapes, K.
    """
    costs_of, limit = np.asarray(costs, float), np.asarray(capacity, np.int64)
    rounded = np.minimum(np.maximum(-(-needs // np.asarray(units)), 1) * np.asarray(units), limit)
    work = rounded @ costs_of
    orders = [np.lexsort((needs[:, 0], work))]
    orders += [np.lexsort((work, rounded[:, resource])) for resource in range(len(limit))]
    found = [_cut(rounded[order], weights[order], limit, costs_of, most) for order in orders]
    return min(found, key=lambda choice: choice.work)


def _cut(
    needs: Int[np.ndarray, "N R"],
    weights: Float[np.ndarray, " N"],
    limit: Int[np.ndarray, " R"],
    costs: Float[np.ndarray, " R"],
    most: int,
) -> ShapeChoice:
    marks = np.linspace(0, weights.sum(), GROUPS + 1)[1:]
    ends = np.unique(np.searchsorted(np.cumsum(weights), marks).clip(0, len(needs) - 1))
    starts = [0, *(ends[:-1] + 1)]
    tops = np.stack([needs[start : end + 1].max(axis=0) for start, end in zip(starts, ends, strict=True)])
    sums = np.concatenate([[0.0], np.cumsum([weights[s : e + 1].sum() for s, e in zip(starts, ends, strict=True)])])
    groups = len(tops)
    # run[i][j]: the work of the groups i to j (without j) in a shape of their own.
    run = np.full((groups + 1, groups + 1), np.inf)
    for i in range(groups):
        run[i, i + 1 :] = (np.maximum.accumulate(tops[i:]) @ costs) * (sums[i + 1 :] - sums[i])
    # The last shape is the capacity, whichever groups are left to it, none too.
    in_full = (limit @ costs) * (sums[-1] - sums)
    best, cuts = np.full(groups + 1, np.inf), []
    best[0] = 0.0
    for _ in range(most - 1):
        through = best[:, None] + run
        np.fill_diagonal(through, best)  # a shape may stay unused
        cuts.append(through.argmin(axis=0))
        best = through.min(axis=0)
    stop = int(np.argmin(best + in_full))
    total, borders = float((best + in_full)[stop]), [stop]
    for cut in reversed(cuts):
        borders.append(int(cut[borders[-1]]))
    shapes = {tuple(limit.tolist())}
    for end, start in itertools.pairwise(borders):
        if start < end:
            shapes.add(tuple(tops[start:end].max(axis=0).tolist()))
    return ShapeChoice(sorted(shapes, key=lambda shape: (float(np.dot(shape, costs)), shape)), total)
