"""Finds the finer tilings between which a tensor crosses from one set of devices to another."""

from __future__ import annotations

import itertools
import math

import numpy as np

from hetjax.boundary.tiling import Tiling


def refinement(source: Tiling, destination: Tiling) -> tuple[int, ...]:
    """Return the pieces along each dim of the coarsest grid that both tilings are made of."""
    return tuple(math.lcm(a, b) for a, b in zip(source.counts, destination.counts, strict=True))


def finest(shape: tuple[int, ...], source: Tiling, destination: Tiling) -> tuple[Tiling, Tiling]:
    """Return the finer tilings that send each byte to the fewest devices, in the fewest pieces, from the most devices.

    Any two tilings that divide the shape fit together: so does the least common multiple of their counts.
    """
    ours, theirs = _refinements(shape, source), _refinements(shape, destination)
    least = min(tiling.replication for tiling in theirs)
    theirs = [tiling for tiling in theirs if tiling.replication == least]
    # Hundreds of refinements on either side make hundred thousands of pairs, too many for a Python loop.
    counts = np.array([tiling.counts for tiling in theirs], np.int64)
    tiles = counts.prod(axis=1)

    def best_with(mine: Tiling) -> tuple[tuple[int, int], Tiling, Tiling]:
        pieces = np.lcm(counts, np.array(mine.counts, np.int64)).prod(axis=1)
        slots = pieces // np.minimum(tiles, math.prod(mine.counts))
        chosen = int(slots.argmin())
        return (int(slots[chosen]), mine.replication), mine, theirs[chosen]

    _, mine, other = min(map(best_with, ours), key=lambda found: found[0])
    return mine, other


def _refinements(shape: tuple[int, ...], tiling: Tiling) -> list[Tiling]:
    """Return the ways to let free axes split dims further that divide the shape, one for each number of tiles."""
    found: dict[tuple[int, ...], Tiling] = {}
    for choice in itertools.product((None, *range(len(shape))), repeat=len(tiling.free_axes)):
        finer = tiling.refined(
            {axis: dim for axis, dim in zip(tiling.free_axes, choice, strict=True) if dim is not None}
        )
        if all(size % count == 0 for size, count in zip(shape, finer.counts, strict=True)):
            found.setdefault(finer.counts, finer)
    return list(found.values())
