"""The finer tilings between which a tensor crosses from one set of devices to another."""

from __future__ import annotations

import itertools
import math

from hetjax.boundary.tiling import Tiling


def refinement(source: Tiling, destination: Tiling) -> tuple[int, ...]:
    """Pieces along each dim of the coarsest grid that both tilings are made of."""
    return tuple(math.lcm(a, b) for a, b in zip(source.counts, destination.counts, strict=True))


def finest(shape: tuple[int, ...], source: Tiling, destination: Tiling) -> tuple[Tiling, Tiling]:
    """The pair of finer tilings that sends each byte to the fewest devices, in the fewest pieces, from the most."""
    # A source left as it is restricts the destination least, so the best destinations are found with it alone.
    theirs = [tiling for tiling in _refinements(shape, destination) if _fits(shape, source, tiling)]
    least = min(tiling.replication for tiling in theirs)
    theirs = [tiling for tiling in theirs if tiling.replication == least]

    def cost(pair: tuple[Tiling, Tiling]) -> tuple[int, int]:
        pieces = math.prod(refinement(*pair))
        return max(pieces // math.prod(tiling.counts) for tiling in pair), pair[0].replication

    pairs = itertools.product(_refinements(shape, source), theirs)
    return min((pair for pair in pairs if _fits(shape, *pair)), key=cost)


def _fits(shape: tuple[int, ...], source: Tiling, destination: Tiling) -> bool:
    return all(size % cells == 0 for size, cells in zip(shape, refinement(source, destination), strict=True))


def _refinements(shape: tuple[int, ...], tiling: Tiling) -> list[Tiling]:
    """The ways to let free axes split dims further that divide the shape, one for each number of tiles."""
    found: dict[tuple[int, ...], Tiling] = {}
    for choice in itertools.product((None, *range(len(shape))), repeat=len(tiling.free_axes)):
        finer = tiling.refined(
            {axis: dim for axis, dim in zip(tiling.free_axes, choice, strict=True) if dim is not None}
        )
        if all(size % count == 0 for size, count in zip(shape, finer.counts, strict=True)):
            found.setdefault(finer.counts, finer)
    return list(found.values())
