"""Moves put into rounds, in each of which a device sends to one device and receives from one at most."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hetjax.boundary.route import Move

Link = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """Links that are busy at the same time, each with the same number of pieces.

    Attributes:
        moves: the moves of each link, by (source, destination), all of one hop.
        size: pieces on each link.
        hop: which one.
    """

    moves: dict[Link, tuple[Move, ...]]
    size: int
    hop: int


def make_rounds(moves: Sequence[Move]) -> tuple[Round, ...]:
    """The moves between different devices, hop after hop.

    Links with unlike numbers of pieces are in different rounds: no padding. For each number of pieces in a hop
    there are as few rounds as the busiest device has such links.
    """
    hops: dict[int, dict[Link, list[Move]]] = defaultdict(lambda: defaultdict(list))
    for move in moves:
        if move.source != move.destination:
            hops[move.hop][move.source, move.destination].append(move)
    rounds = []
    for hop, by_link in sorted(hops.items()):
        links = sorted(by_link, key=lambda link: (len(by_link[link]), link))
        for size, group in itertools.groupby(links, key=lambda link: len(by_link[link])):
            for color in color_links(group):
                rounds.append(Round(moves={link: tuple(by_link[link]) for link in color}, size=size, hop=hop))
    return tuple(rounds)


def color_links(links: Iterable[Link]) -> list[list[Link]]:
    """Links in groups without a common source or destination, as few as the largest number of links at one device.

    A bipartite graph needs no more colors than its largest degree (Kőnig 1916): where the two ends of
    a new link have no free color in common, the colors along an alternating path are exchanged.
    """
    links = list(links)
    out: dict[int, _Used] = defaultdict(_Used)
    into: dict[int, _Used] = defaultdict(_Used)
    degree = max((Counter(a for a, _ in links) | Counter(b for _, b in links)).values(), default=0)
    for source, destination in links:
        color = _lowest_free(out[source].mask | into[destination].mask)
        if color >= degree:
            color = _lowest_free(out[source].mask)
            _exchange(out, into, destination, color, _lowest_free(into[destination].mask))
        out[source].take(color, destination)
        into[destination].take(color, source)
    colors: dict[int, list[Link]] = defaultdict(list)
    for source, used in out.items():
        for color, destination in used.items():
            colors[color].append((source, destination))
    return [sorted(colors[color]) for color in sorted(colors)]


def broadcast_rounds(size: int) -> tuple[tuple[Link, ...], ...]:
    """What the first of `size` devices holds, to all: in each round, (from, to) places; twice as many have it then."""
    rounds = []
    have = 1
    while have < size:
        rounds.append(tuple((place, place + have) for place in range(min(have, size - have))))
        have *= 2
    return tuple(rounds)


class _Used(dict[int, int]):
    """The colors of a device's links, with the device at the other end, and as the bits of one number."""

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
