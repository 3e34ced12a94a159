"""Count the bytes that each device sends to each other one in the hops of a boundary."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

from hetjax.boundary.rounds import DevicePair, broadcast_rounds
from hetjax.boundary.route import Move
from hetjax.boundary.tiling import Tiling


def moved_bytes(moves: Iterable[Move], piece_bytes: int) -> dict[DevicePair, int]:
    """Return the bytes of these moves, by (sender, receiver); what stays on its device is left out."""
    pieces = Counter((move.source, move.destination) for move in moves if move.source != move.destination)
    return {pair: count * piece_bytes for pair, count in sorted(pieces.items())}


def broadcast_bytes(destination: Tiling, axes: tuple[str, ...], tile_bytes: int) -> dict[DevicePair, int]:
    """Return the bytes that hand a tile of the first device along these axes to all others, by (sender, receiver)."""
    groups = _groups(destination, axes)
    pairs = list(itertools.chain.from_iterable(broadcast_rounds(len(groups[0]))))
    return {(group[a], group[b]): tile_bytes for group in groups for a, b in pairs}


def gathered_bytes(destination: Tiling, fine: Tiling, tile_bytes: int) -> dict[DevicePair, int]:
    """Return the bytes that all-gather tiles of `fine`, of this size, to tiles of `destination`, by (sender, receiver).

    Dim after dim: what is gathered along one is larger by as much along the next.
    """
    found: dict[DevicePair, int] = {}
    for coarse_axes, fine_axes in zip(destination.spec, fine.spec, strict=True):
        groups = _groups(destination, fine_axes[len(coarse_axes) :])
        found |= {(a, b): tile_bytes for group in groups for a in group for b in group if a != b}
        tile_bytes *= len(groups[0])
    return found


def _groups(tiling: Tiling, axes: tuple[str, ...]) -> list[list[int]]:
    """Return the devices in groups that differ only in their place along these axes."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for device, place in tiling.place_of.items():
        groups[tuple(i for axis, i in place.items() if axis not in axes)].append(device)
    return list(groups.values())
