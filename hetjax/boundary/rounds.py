"""Puts moves into rounds, in each of which a device sends to one device and receives from one at most."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hetjax.boundary.route import Move

DevicePair = tuple[int, int]
"""Two devices: (sender, receiver)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """Moves at the same time, with the same number of pieces between each two devices.

    Attributes:
        moves: the moves of each device pair, by (source, destination).
        size: pieces of each device pair.
        relay: that of all the moves.
    """

    moves: dict[DevicePair, tuple[Move, ...]]
    size: int
    relay: int


def make_rounds(moves: Sequence[Move]) -> tuple[Round, ...]:
    """Return the moves between different devices, relay after relay.

    Device pairs with unlike numbers of pieces are in different rounds: no padding. For each number of pieces in a
    relay there are as few rounds as the busiest device has such pairs.
    """
    relays: dict[int, dict[DevicePair, list[Move]]] = defaultdict(lambda: defaultdict(list))
    for move in moves:
        if move.source != move.destination:
            relays[move.relay][move.source, move.destination].append(move)
    rounds = []
    for relay, by_pair in sorted(relays.items()):
        pairs = sorted(by_pair, key=lambda pair: (len(by_pair[pair]), pair))
        for size, group in itertools.groupby(pairs, key=lambda pair: len(by_pair[pair])):
            for color in color_pairs(group):
                rounds.append(Round(moves={pair: tuple(by_pair[pair]) for pair in color}, size=size, relay=relay))
    return tuple(rounds)


def color_pairs(pairs: Iterable[DevicePair]) -> list[list[DevicePair]]:
    """Return the pairs in groups without a common source or destination, as few as the most pairs of one device.

    A bipartite graph needs no more colors than its largest degree (Kőnig 1916): where the two ends of
    a new pair have no free color in common, the colors along an alternating path are exchanged.
    """
    pairs = list(pairs)
    out: dict[int, _Used] = defaultdict(_Used)
    into: dict[int, _Used] = defaultdict(_Used)
    degree = max((Counter(a for a, _ in pairs) | Counter(b for _, b in pairs)).values(), default=0)
    for source, destination in pairs:
        color = _lowest_free(out[source].mask | into[destination].mask)
        if color >= degree:
            color = _lowest_free(out[source].mask)
            _exchange(out, into, destination, color, _lowest_free(into[destination].mask))
        out[source].take(color, destination)
        into[destination].take(color, source)
    colors: dict[int, list[DevicePair]] = defaultdict(list)
    for source, used in out.items():
        for color, destination in used.items():
            colors[color].append((source, destination))
    return [sorted(colors[color]) for color in sorted(colors)]


def broadcast_rounds(size: int) -> tuple[tuple[DevicePair, ...], ...]:
    """Return rounds of (from, to) places that hand the first of `size` devices' block to all, doubling each time."""
    rounds = []
    have = 1
    while have < size:
        rounds.append(tuple((place, place + have) for place in range(min(have, size - have))))
        have *= 2
    return tuple(rounds)


class _Used(dict[int, int]):
    """The colors of a device's pairs, with the other device, and as the bits of one number."""

    def __init__(self) -> None:
        self.mask = 0

    def take(self, color: int, other: int) -> None:
        self[color] = other
        self.mask |= 1 << color

    def free(self, color: int) -> None:
        del self[color]
        self.mask ^= 1 << color


def _lowest_free(mask: int) -> int:
    return (~mask & (mask + 1)).bit_length() - 1


def _exchange(out: Mapping[int, _Used], into: Mapping[int, _Used], destination: int, mine: int, theirs: int) -> None:
    """Along the path of colors `mine` and `theirs` that begins at `destination`, swap the two."""
    path = []
    node, color, at_destination = destination, mine, True
    while color in (into if at_destination else out)[node]:
        other = (into if at_destination else out)[node][color]
        path.append(((other, node) if at_destination else (node, other), color))
        node, color, at_destination = other, theirs if color == mine else mine, not at_destination
    for (a, b), color in path:
        out[a].free(color)
        into[b].free(color)
    for (a, b), color in path:
        swapped = theirs if color == mine else mine
        out[a].take(swapped, b)
        into[b].take(swapped, a)
