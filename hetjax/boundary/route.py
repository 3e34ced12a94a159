"""Which piece goes from which device to which."""

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

    In hop 0 the source slot is one of the source's tile. In a later one it is one of the destination's: a
    device hands on what it kept, or got in a hop before.
    """

    piece: Coordinate
    source: int
    source_slot: int
    destination: int
    destination_slot: int
    hop: int = 0


def route(
    grid: tuple[int, ...], source: Tiling, destination: Tiling, receivers: Collection[int] | None = None
) -> tuple[Move, ...]:
    """One move for each piece of each destination device, or of those among `receivers`.

    The source is the device itself if it can be, else the least busy of those that hold the piece. Where
    many receive what few hold, those that have it hand it on, twice as many in each hop.
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
            for hop, sender, receiver in _hops(able, group, sent):
                moves.append(
                    Move(
                        piece=piece,
                        source=sender,
                        source_slot=slot if hop else at_source,
                        destination=receiver,
                        destination_slot=slot,
                        hop=hop,
                    )
                )
    return tuple(moves)


def spans(grid: tuple[int, ...], tiling: Tiling) -> tuple[int, ...]:
    """Pieces along each dim inside one tile."""
    return tuple(cells // count for cells, count in zip(grid, tiling.counts, strict=True))


def _hops(able: Sequence[int], group: Sequence[int], sent: Counter[int]) -> list[tuple[int, int, int]]:
    """(hop, sender, receiver) of one piece, from the devices that are `able` to all of a `group`; counts in `sent`."""
    known = set(able)
    having = [device for device in group if device in known]
    lacking = [device for device in group if device not in known]
    hops = [(0, device, device) for device in having]
    counts = _receivers_by_hop(len(able), len(having), len(lacking))
    if len(counts) == 1:
        for device in lacking:
            sender = min(able, key=sent.__getitem__)
            sent[sender] += 1
            hops.append((0, sender, device))
        return hops
    left = iter(lacking)
    for hop, count in enumerate(counts):
        senders = sorted(able if hop == 0 else having, key=sent.__getitem__)
        reached = list(itertools.islice(left, count))
        hops += [(hop, sender, device) for sender, device in zip(senders, reached, strict=False)]
        sent.update(senders[:count])
        having += reached
    return hops


def _receivers_by_hop(able: int, having: int, lacking: int) -> list[int]:
    """How many receive a piece in each hop: all in one, unless handing on takes fewer messages one after the other."""
    counts = [min(able, lacking)]
    while sum(counts) < lacking:
        counts.append(min(having + sum(counts), lacking - sum(counts)))
    return counts if len(counts) < -(-lacking // able) else [lacking]


def _slot(piece: Coordinate, inside: tuple[int, ...]) -> int:
    """Row-major number of a piece inside its tile."""
    return functools.reduce(lambda value, pair: value * pair[1] + pair[0] % pair[1], zip(piece, inside, strict=True), 0)
