"""Plans a boundary: from two tilings to hops and their bytes. Pure; no device is touched.

Between meshes that share no device a tensor crosses in *pieces*, each byte once:

1. on the source mesh, what is replicated is *sliced* further, which costs no communication;
2. every piece *crosses* from one source device to one destination device, all pairs at once;
3. on the destination mesh, pieces are joined, and what shall be replicated is *gathered*. Only what no
   dim divides into (a scalar, say) crosses to one of the copies and is *broadcast* to the others.

Between meshes that share devices there is an *exchange*: every device receives exactly what it does not hold
yet, straight from a device that does. Where many lack what few hold, some receive it so, and *relay* it to the
others: the bytes are the same, and no device has to send to all.

The pieces are the common refinement of both tilings, so any two shardings whose tiles divide the shape
fit together: 3 devices to 4, rows to columns, replicated to split.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Literal

from hetjax.boundary.device_pairs import broadcast_bytes, gathered_bytes, moved_bytes
from hetjax.boundary.refine import finest, refinement
from hetjax.boundary.rounds import DevicePair
from hetjax.boundary.route import Move, route
from hetjax.boundary.tiling import Tiling, common_part
from hetjax.errors import BoundaryError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanHop:
    """One hop of a tensor over a boundary.

    Attributes:
        name: what is done.
        where: on which devices.
        bytes_per_pair: bytes from each device to each other one, by (sender, receiver).
    """

    name: Literal["slice", "cross", "broadcast", "gather", "exchange", "relay"]
    where: Literal["source", "source to destination", "destination", "shared devices"]
    bytes_per_pair: Mapping[DevicePair, int]

    @property
    def bytes(self) -> int:
        """Bytes over all device pairs."""
        return sum(self.bytes_per_pair.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryPlan:
    """The plan by which one tensor crosses from a source sharding to a destination sharding.

    Attributes:
        shape: shape of the whole tensor.
        itemsize: bytes an element.
        source, destination: the tilings asked for.
        source_fine, destination_fine: the tilings between which pieces cross.
        broadcast_axes: destination axes along which only one device receives, and relays to the others.
    """

    shape: tuple[int, ...]
    itemsize: int
    source: Tiling
    destination: Tiling
    source_fine: Tiling
    destination_fine: Tiling
    broadcast_axes: tuple[str, ...]

    # ── tilings and pieces ───────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def disjoint(self) -> bool:
        """Whether the meshes share no device."""
        return not set(self.source.devices) & set(self.destination.devices)

    @functools.cached_property
    def stays(self) -> bool:
        """Whether every device already holds its destination tile."""
        held = self.source.tile_of
        return self.source.counts == self.destination.counts and all(
            held.get(device) == tile for device, tile in self.destination.tile_of.items()
        )

    @functools.cached_property
    def grid(self) -> tuple[int, ...]:
        """Pieces along each dim."""
        return refinement(self.source_fine, self.destination_fine)

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """Shape of one piece."""
        return tuple(size // cells for size, cells in zip(self.shape, self.grid, strict=True))

    @property
    def piece_bytes(self) -> int:
        """Bytes of one piece."""
        return math.prod(self.piece_shape) * self.itemsize

    @functools.cached_property
    def moves(self) -> tuple[Move, ...]:
        """A move for each piece and device that needs it; one from a device to itself sends nothing."""
        receivers = None
        if self.broadcast_axes:
            places = self.destination.place_of
            receivers = {d for d, place in places.items() if not any(place[axis] for axis in self.broadcast_axes)}
        return route(self.grid, self.source_fine, self.destination_fine, receivers)

    @functools.cached_property
    def hops(self) -> tuple[PlanHop, ...]:
        """The hops in order, with the bytes of each device pair; none where everything stays."""
        if self.stays:
            return ()
        if not self.disjoint:
            return self._exchange_hops()
        hops = [PlanHop(name="cross", where="source to destination", bytes_per_pair=self.bytes_per_pair)]
        if self.source_fine != self.source:
            hops.insert(0, PlanHop(name="slice", where="source", bytes_per_pair={}))
        tile = self._tile_bytes(self.destination_fine)
        if self.broadcast_axes:
            sent = broadcast_bytes(self.destination, self.broadcast_axes, tile)
            hops.append(PlanHop(name="broadcast", where="destination", bytes_per_pair=sent))
        if self.destination_fine != self.destination:
            sent = gathered_bytes(self.destination, self.destination_fine, tile)
            hops.append(PlanHop(name="gather", where="destination", bytes_per_pair=sent))
        return tuple(hops)

    def _exchange_hops(self) -> tuple[PlanHop, ...]:
        direct = moved_bytes((move for move in self.moves if not move.relay), self.piece_bytes)
        relayed = moved_bytes((move for move in self.moves if move.relay), self.piece_bytes)
        hops = [PlanHop(name="exchange", where="shared devices", bytes_per_pair=direct)]
        if relayed:
            hops.append(PlanHop(name="relay", where="shared devices", bytes_per_pair=relayed))
        return tuple(hops)

    # ── bytes ────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def bytes_per_pair(self) -> dict[DevicePair, int]:
        """Bytes that cross from each source device to each other destination device."""
        return moved_bytes(self.moves, self.piece_bytes)

    @property
    def bytes_per_pair_max(self) -> int:
        """Bytes over the busiest pair of devices."""
        return max(self.bytes_per_pair.values(), default=0)

    @functools.cached_property
    def bytes_moved(self) -> int:
        """Bytes that cross from source to destination, or between shared devices."""
        if not self.disjoint:
            return self.bytes_lacking
        copies = self.destination_fine.replication // self._broadcast_size
        return math.prod(self.shape) * self.itemsize * copies

    @property
    def bytes_gathered(self) -> int:
        """Bytes that destination devices receive from each other after the crossing."""
        fine = self._tile_bytes(self.destination_fine)
        receivers = len(self.destination.devices) // self._broadcast_size
        return (
            self._tile_bytes(self.destination) * len(self.destination.devices) - fine * receivers
            if self.disjoint
            else 0
        )

    @functools.cached_property
    def bytes_lacking(self) -> int:
        """Bytes of its destination tile that each device does not hold at the source, summed over devices."""
        return sum(self._tile_bytes(self.destination) - self._held_bytes(device) for device in self.destination.devices)

    @property
    def lower_bound(self) -> int:
        """The fewest bytes that can do: all of the tensor once, or what each of shared devices lacks."""
        return math.prod(self.shape) * self.itemsize if self.disjoint else self.bytes_lacking

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    @property
    def _broadcast_size(self) -> int:
        sizes = dict(self.destination.axes)
        return math.prod(sizes[axis] for axis in self.broadcast_axes)

    def _tile_bytes(self, tiling: Tiling) -> int:
        return math.prod(self.shape) // math.prod(tiling.counts) * self.itemsize

    def _held_bytes(self, device: int) -> int:
        if device not in self.source.tile_of:
            return 0
        tiles = self.source, self.source.tile_of[device], self.destination, self.destination.tile_of[device]
        bounds = common_part(self.shape, *tiles)
        if bounds is None:
            return 0
        return math.prod(stop - start for start, stop in zip(*bounds, strict=True)) * self.itemsize


@functools.lru_cache(maxsize=4096)
def make_plan(shape: tuple[int, ...], itemsize: int, source: Tiling, destination: Tiling) -> BoundaryPlan:
    """Plan how a tensor crosses a boundary.

    Raises BoundaryError when a tiling does not divide the shape, or the tensor has no elements.
    """
    if not math.prod(shape):
        raise BoundaryError(f"boundary: a tensor of shape {shape} has no elements to carry; leave it out")
    for side, tiling in (("source", source), ("destination", destination)):
        _check_divides(shape, tiling, side)
    source_fine, destination_fine, broadcast_axes = source, destination, ()
    if not set(source.devices) & set(destination.devices):
        source_fine, destination_fine = finest(shape, source, destination)
        broadcast_axes = destination_fine.free_axes
    return BoundaryPlan(
        shape=shape,
        itemsize=itemsize,
        source=source,
        destination=destination,
        source_fine=source_fine,
        destination_fine=destination_fine,
        broadcast_axes=broadcast_axes,
    )


def _check_divides(shape: tuple[int, ...], tiling: Tiling, side: str) -> None:
    for dim, (size, count) in enumerate(zip(shape, tiling.counts, strict=True)):
        if size % count:
            raise BoundaryError(
                f"boundary {side}: dim {dim} of shape {shape} is {size}, not divisible into the {count} tiles of "
                f"axes {'*'.join(tiling.spec[dim])} ({size} % {count} = {size % count}); change the size or the degree"
            )
