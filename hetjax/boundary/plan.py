"""What a boundary does: two tilings in, steps and bytes out. Pure; no device is touched.

Between meshes that do not list the same devices, a tensor crosses in *pieces*:

1. on the source mesh, what is replicated is sliced further, which costs no communication;
2. every piece goes from one source device to one destination device, all pairs at once;
3. on the destination mesh, pieces are joined and what shall be replicated is gathered.

The pieces are the common refinement of the two finer tilings, so any two shardings whose tiles
divide the shape fit together: 3 devices to 4, rows to columns, replicated to split.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter

from hetjax.boundary.tiling import Coordinate, Tiling
from hetjax.errors import BoundaryError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """One piece on its way: from a slot of a source device to a slot of a destination device."""

    piece: Coordinate
    source: int
    source_slot: int
    destination: int
    destination_slot: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryPlan:
    """The steps of one crossing.

    Attributes:
        shape: shape of the whole tensor.
        itemsize: bytes an element.
        source, destination: the tilings asked for.
        source_fine, destination_fine: the tilings between which pieces cross.
        grid: pieces along each dim.
        moves: where each piece goes; empty when one program on the shared devices does it all.
    """

    shape: tuple[int, ...]
    itemsize: int
    source: Tiling
    destination: Tiling
    source_fine: Tiling
    destination_fine: Tiling
    grid: tuple[int, ...]
    moves: tuple[Move, ...]

    @property
    def in_one_program(self) -> bool:
        """Whether both meshes list the same devices and one program's collectives reshard the tensor."""
        return not self.moves

    @property
    def stays(self) -> bool:
        """Whether every device already holds what it shall hold."""
        return self.source.tile_of == self.destination.tile_of and self.source.counts == self.destination.counts

    @property
    def piece_bytes(self) -> int:
        """Bytes of one piece."""
        return math.prod(self.shape) // math.prod(self.grid) * self.itemsize

    @functools.cached_property
    def bytes_per_link(self) -> dict[tuple[int, int], int]:
        """Bytes that cross from each source device to each other destination device."""
        links = Counter((move.source, move.destination) for move in self.moves if move.source != move.destination)
        return {link: pieces * self.piece_bytes for link, pieces in sorted(links.items())}

    @property
    def bytes_per_link_max(self) -> int:
        """Bytes over the busiest pair of devices."""
        return max(self.bytes_per_link.values(), default=0)

    @property
    def bytes_moved(self) -> int:
        """Bytes that cross: from device to device in step 2, or in the one program of shared devices."""
        return self.bytes_lacking if self.in_one_program else sum(self.bytes_per_link.values())

    @property
    def bytes_gathered(self) -> int:
        """Bytes that destination devices receive from each other in step 3."""
        tile, fine = (math.prod(self.shape) // math.prod(t.counts) for t in (self.destination, self.destination_fine))
        return 0 if self.in_one_program else (tile - fine) * self.itemsize * len(self.destination.devices)

    @property
    def bytes_lacking(self) -> int:
        """Bytes of its destination tile that each device does not hold at the source, summed over devices."""
        return sum(self._tile_bytes(self.destination) - self._held_bytes(device) for device in self.destination.devices)

    @property
    def lower_bound(self) -> int:
        """Bytes that have to cross: what the destination's devices, taken together, do not hold at the source.

        On the same devices in one program it is what each device lacks.
        """
        if self.in_one_program:
            return self.bytes_lacking
        shared = set(self.destination.devices) & set(self.source.devices)
        held = {piece for device in shared for piece in self._pieces(self.source, device)}
        return (math.prod(self.grid) - len(held)) * self.piece_bytes

    def _tile_bytes(self, tiling: Tiling) -> int:
        return math.prod(self.shape) // math.prod(tiling.counts) * self.itemsize

    def _held_bytes(self, device: int) -> int:
        if device not in self.source.tile_of:
            return 0
        overlap = 1
        for size, mine, theirs, i, j in zip(
            self.shape,
            self.source.counts,
            self.destination.counts,
            self.source.tile_of[device],
            self.destination.tile_of[device],
            strict=True,
        ):
            start = max(i * size // mine, j * size // theirs)
            stop = min((i + 1) * size // mine, (j + 1) * size // theirs)
            overlap *= max(stop - start, 0)
        return overlap * self.itemsize

    def _pieces(self, tiling: Tiling, device: int) -> itertools.product:
        """Grid coordinates of the pieces inside a device's tile."""
        spans = [cells // count for cells, count in zip(self.grid, tiling.counts, strict=True)]
        tile = tiling.tile_of[device]
        return itertools.product(*(range(i * span, (i + 1) * span) for i, span in zip(tile, spans, strict=True)))


@functools.lru_cache(maxsize=4096)
def make_plan(shape: tuple[int, ...], itemsize: int, source: Tiling, destination: Tiling) -> BoundaryPlan:
    """Plan the crossing of a tensor. Raises BoundaryError when a tiling does not divide the shape."""
    for side, tiling in (("source", source), ("destination", destination)):
        _check_divides(shape, tiling, side)
    common = {"shape": shape, "itemsize": itemsize, "source": source, "destination": destination}
    if source.devices == destination.devices and _nested(source.counts, destination.counts):
        return BoundaryPlan(**common, source_fine=source, destination_fine=destination, grid=source.counts, moves=())
    source_fine, destination_fine = _finest(shape, source, destination)
    grid = _refinement(source_fine, destination_fine)
    moves = _route(grid, source_fine, destination_fine)
    return BoundaryPlan(
        **common, source_fine=source_fine, destination_fine=destination_fine, grid=grid, moves=tuple(moves)
    )


def _check_divides(shape: tuple[int, ...], tiling: Tiling, side: str) -> None:
    for dim, (size, count) in enumerate(zip(shape, tiling.counts, strict=True)):
        if size % count:
            raise BoundaryError(
                f"boundary {side}: dim {dim} of shape {shape} is {size}, not divisible into the {count} tiles of "
                f"axes {'*'.join(tiling.spec[dim])} ({size} % {count} = {size % count}); change the size or the degree"
            )


def _nested(source: tuple[int, ...], destination: tuple[int, ...]) -> bool:
    """Whether one tiling only refines the other: then the partitioner needs no more than a slice or a gather."""
    pairs = list(zip(source, destination, strict=True))
    return all(a % b == 0 for a, b in pairs) or all(b % a == 0 for a, b in pairs)


def _refinement(source: Tiling, destination: Tiling) -> tuple[int, ...]:
    return tuple(math.lcm(a, b) for a, b in zip(source.counts, destination.counts, strict=True))


def _finest(shape: tuple[int, ...], source: Tiling, destination: Tiling) -> tuple[Tiling, Tiling]:
    """The pair of finer tilings that sends each byte once, in the fewest pieces a device, from the most devices."""

    def cost(pair: tuple[Tiling, Tiling]) -> tuple[int, int, int]:
        pieces = math.prod(_refinement(*pair))
        a_device = max(pieces // math.prod(tiling.counts) for tiling in pair)
        return pair[1].replication, a_device, pair[0].replication

    pairs = itertools.product(_refinements(shape, source), _refinements(shape, destination))
    return min(
        (
            pair
            for pair in pairs
            if all(size % cells == 0 for size, cells in zip(shape, _refinement(*pair), strict=True))
        ),
        key=cost,
    )


def _refinements(shape: tuple[int, ...], tiling: Tiling) -> list[Tiling]:
    """Every way to let free axes split dims further that divides the shape."""
    choices = itertools.product((*range(len(shape)), None), repeat=len(tiling.free_axes))
    tilings = [
        tiling.refined({axis: dim for axis, dim in zip(tiling.free_axes, choice, strict=True) if dim is not None})
        for choice in choices
    ]
    return [t for t in tilings if all(size % count == 0 for size, count in zip(shape, t.counts, strict=True))]


def _route(grid: tuple[int, ...], source: Tiling, destination: Tiling) -> list[Move]:
    """One move a piece and destination device; the source is the device itself if it can be, else the least busy."""
    holders: dict[Coordinate, list[int]] = {}
    for device, tile in source.tile_of.items():
        holders.setdefault(tile, []).append(device)
    sent = Counter()
    moves = []
    source_spans, destination_spans = (
        tuple(cells // count for cells, count in zip(grid, tiling.counts, strict=True))
        for tiling in (source, destination)
    )
    for device, tile in destination.tile_of.items():
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
    return moves


def _slot(piece: Coordinate, spans: tuple[int, ...]) -> int:
    """Row-major number of a piece inside its tile."""
    return functools.reduce(lambda value, pair: value * pair[1] + pair[0] % pair[1], zip(piece, spans, strict=True), 0)
