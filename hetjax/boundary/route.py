"""Which piece goes from which device to which."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Collection

from hetjax.boundary.tiling import Coordinate, Tiling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """One piece on its way: from a slot of a source device to a slot of a destination device."""

    piece: Coordinate
    source: int
    source_slot: int
    destination: int
    destination_slot: int


def route(
    grid: tuple[int, ...], source: Tiling, destination: Tiling, receivers: Collection[int] | None = None
) -> tuple[Move, ...]:
    """One move for each piece of each destination device, or of those among `receivers`.

    The source is the device itself if it can be, else the least busy of those that hold the piece.
    """
    holders: dict[Coordinate, list[int]] = {}
    for device, tile in source.tile_of.items():
        holders.setdefault(tile, []).append(device)
    sent = Counter()
    moves = []
    source_spans, destination_spans = spans(grid, source), spans(grid, destination)
    for device, tile in destination.tile_of.items():
        if receivers is not None and device not in receivers:
            continue
        for slot, local in enumerate(itertools.product(*map(range, destination_spans))):
            piece = tuple(i * span + k for i, span, k in zip(tile, destination_spans, local, strict=True))
            able = holders[tuple(p // span for p, span in zip(piece, source_spans, strict=True))]
            sender = device if device in able else min(able, key=lambda holder: sent[holder])
            sent[sender] += sender != device
            moves.append(
                Move(
                    piece=piece,
                    source=sender,
                    source_slot=_slot(piece, source_spans),
                    destination=device,
                    destination_slot=slot,
                )
            )
    return tuple(moves)


def spans(grid: tuple[int, ...], tiling: Tiling) -> tuple[int, ...]:
    """Pieces along each dim inside one tile."""
    return tuple(cells // count for cells, count in zip(grid, tiling.counts, strict=True))


def _slot(piece: Coordinate, inside: tuple[int, ...]) -> int:
    """Row-major number of a piece inside its tile."""
    return functools.reduce(lambda value, pair: value * pair[1] + pair[0] % pair[1], zip(piece, inside, strict=True), 0)
