"""Routes pieces: which goes from which device to which."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Collection, Sequence

from hetjax.boundary.tiling import Coordinate, Tiling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """One piece on its way: from a slot of a source device to a slot of a destination device.

    Attributes:
        piece: coordinate of the piece in the grid of all.
        source, destination: device ids.
        source_slot, destination_slot: row-major number of the piece in the tile that each device holds.
        relay: 0 for a piece straight from the source, whose slot then is one of the source's tile. In relay 1, 2, ...
            a device passes on a piece of its destination tile that it kept, or received in a relay before.
    """

    piece: Coordinate
    source: int
    source_slot: int
    destination: int
    destination_slot: int
    relay: int = 0


def route(
    grid: tuple[int, ...], source: Tiling, destination: Tiling, receivers: Collection[int] | None = None
) -> tuple[Move, ...]:
    """Return one move for each piece of each destination device, or of those among `receivers`.

    The source is the device itself if it can be, else the least busy of those that hold the piece. Where
    many receive what few hold, those that have it relay it, twice as many in each relay.
    """
    holders, groups = source.holders, destination.holders
    sent: Counter[int] = Counter()
    moves = []
    source_spans, destination_spans = spans(grid, source), spans(grid, destination)
    for tile, group in groups.items():
        group = [device for device in group if receivers is None or device in receivers]
        for slot, local in enumerate(itertools.product(*map(range, destination_spans))):
            piece = tuple(i * span + k for i, span, k in zip(tile, destination_spans, local, strict=True))
            able = holders[tuple(p // span for p, span in zip(piece, source_spans, strict=True))]
            at_source = _slot(piece, source_spans)
            for relay, sender, receiver in _relays(able, group, sent):
                moves.append(
                    Move(
                        piece=piece,
                        source=sender,
                        source_slot=slot if relay else at_source,
                        destination=receiver,
                        destination_slot=slot,
                        relay=relay,
                    )
                )
    return tuple(moves)


def spans(grid: tuple[int, ...], tiling: Tiling) -> tuple[int, ...]:
    """Return the pieces along each dim inside one tile."""
    return tuple(cells // count for cells, count in zip(grid, tiling.counts, strict=True))


def _relays(able: Sequence[int], group: Sequence[int], sent: Counter[int]) -> list[tuple[int, int, int]]:
    """Return (relay, sender, receiver) of one piece, from those that are `able` to a `group`; counts in `sent`."""
    known = set(able)
    having = [device for device in group if device in known]
    lacking = [device for device in group if device not in known]
    moves = [(0, device, device) for device in having]
    counts = _receivers_by_relay(len(able), len(having), len(lacking))
    if len(counts) == 1:
        for device in lacking:
            sender = min(able, key=sent.__getitem__)
            sent[sender] += 1
            moves.append((0, sender, device))
        return moves
    left = iter(lacking)
    for relay, count in enumerate(counts):
        senders = sorted(able if relay == 0 else having, key=sent.__getitem__)
        reached = list(itertools.islice(left, count))
        moves += [(relay, sender, device) for sender, device in zip(senders, reached, strict=False)]
        sent.update(senders[:count])
        having += reached
    return moves


def _receivers_by_relay(able: int, having: int, lacking: int) -> list[int]:
    """Return how many receive a piece in each relay: all in one, unless relays take fewer messages in a row."""
    counts = [min(able, lacking)]
    while sum(counts) < lacking:
        counts.append(min(having + sum(counts), lacking - sum(counts)))
    return counts if len(counts) < -(-lacking // able) else [lacking]


def _slot(piece: Coordinate, inside: tuple[int, ...]) -> int:
    """Return the row-major number of a piece inside its tile."""
    return functools.reduce(lambda value, pair: value * pair[1] + pair[0] % pair[1], zip(piece, inside, strict=True), 0)
