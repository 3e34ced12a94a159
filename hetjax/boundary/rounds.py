"""Moves put into rounds, in each of which a device sends to one device and receives from one at most."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

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
    out: dict[int, dict[int, int]] = defaultdict(dict)  # source -> {color: destination}
    into: dict[int, dict[int, int]] = defaultdict(dict)  # destination -> {color: source}
    for source, destination in links:
        mine, theirs = _free(out[source]), _free(into[destination])
        if mine != theirs:
            _exchange(out, into, destination, mine, theirs)
        out[source][mine] = destination
        into[destination][mine] = source
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


def _free(used: dict[int, int]) -> int:
    return next(color for color in itertools.count() if color not in used)


def _exchange(out: dict, into: dict, destination: int, mine: int, theirs: int) -> None:
    """Along the path of colors `mine` and `theirs` that begins at `destination`, swap the two."""
    path = []
    node, color, at_destination = destination, mine, True
    while color in (into if at_destination else out)[node]:
        other = (into if at_destination else out)[node][color]
        path.append(((other, node) if at_destination else (node, other), color))
        node, color, at_destination = other, theirs if color == mine else mine, not at_destination
    for (a, b), color in path:
        del out[a][color], into[b][color]
    for (a, b), color in path:
        swapped = theirs if color == mine else mine
        out[a][swapped], into[b][swapped] = b, a
