"""Leader and broadcast: the plan that others use, to compare a boundary plan with.

One device of each group of source copies, the *leader*, sends what it holds to the leaders of the
destination's tiles (a leader splits its tile for several; a leader that receives from several concatenates), and
each of those broadcasts its tile to the other devices that hold the same. NVIDIA's Megatron-LM does so
between separate meshes for a batch split over data-parallel groups; here the tiles may be of any dims.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from hetjax.boundary.plan import DevicePair, PlanHop
from hetjax.boundary.tiling import Coordinate, Tiling, common_part


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeaderMove:
    """The part that two leaders' tiles have in common, which one sends to the other.

    Attributes:
        source, destination: device numbers of the leaders.
        start, stop: the part's corners in the whole tensor.
    """

    source: int
    destination: int
    start: Coordinate
    stop: Coordinate

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(stop - start for start, stop in zip(self.start, self.stop, strict=True))


def leader_moves(shape: tuple[int, ...], source: Tiling, destination: Tiling) -> tuple[LeaderMove, ...]:
    """Return what every source leader sends to each destination leader that needs some of its tile, itself too."""
    moves = []
    senders, receivers = source.holders, destination.holders
    for (wanted, (receiver, *_)), (held, (sender, *_)) in itertools.product(receivers.items(), senders.items()):
        if bounds := common_part(shape, source, held, destination, wanted):
            start, stop = bounds
            moves.append(LeaderMove(source=sender, destination=receiver, start=start, stop=stop))
    return tuple(moves)


def leader_hops(shape: tuple[int, ...], itemsize: int, source: Tiling, destination: Tiling) -> tuple[PlanHop, ...]:
    """Return leader and broadcast as hops of a plan.

    The broadcast is a chain, in which every device of a group sends to the next what it receives: with
    small pieces one behind the other no device sends or receives a byte twice, the best a broadcast can do.
    """
    crossing: dict[DevicePair, int] = {
        (move.source, move.destination): move.size * itemsize
        for move in leader_moves(shape, source, destination)
        if move.source != move.destination
    }
    tile = math.prod(shape) // math.prod(destination.counts) * itemsize
    chain: dict[DevicePair, int] = {
        pair: tile for group in destination.holders.values() for pair in itertools.pairwise(group)
    }
    hops = [PlanHop(name="cross", where="source to destination", bytes_per_pair=crossing)]
    if chain:
        hops.append(PlanHop(name="broadcast", where="destination", bytes_per_pair=chain))
    return tuple(hops)
