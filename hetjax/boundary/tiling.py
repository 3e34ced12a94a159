"""Describes how a mesh tiles an array by plain numbers in place of shardings, so that a plan needs no device."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

from jax.sharding import NamedSharding, PartitionSpec

from hetjax.errors import BoundaryError

Coordinate = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """One array's tiles on one mesh.

    Attributes:
        axes: (name, size) of each mesh axis, outermost first.
        devices: device ids in mesh order.
        spec: for each dim of the array, the axes it is split over, major first.
    """

    axes: tuple[tuple[str, int], ...]
    devices: tuple[int, ...]
    spec: tuple[tuple[str, ...], ...]

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each dim."""
        sizes = dict(self.axes)
        return tuple(math.prod(sizes[axis] for axis in axes) for axes in self.spec)

    @property
    def replication(self) -> int:
        """Devices that hold the same tile."""
        return len(self.devices) // math.prod(self.counts)

    @property
    def free_axes(self) -> tuple[str, ...]:
        """Axes along which the array is replicated."""
        used = set(itertools.chain.from_iterable(self.spec))
        return tuple(name for name, size in self.axes if size > 1 and name not in used)

    @functools.cached_property
    def place_of(self) -> dict[int, dict[str, int]]:
        """Coordinate of each device id along each axis."""
        names = [name for name, _ in self.axes]
        places = itertools.product(*(range(size) for _, size in self.axes))
        return {
            device: dict(zip(names, place, strict=True)) for device, place in zip(self.devices, places, strict=True)
        }

    @functools.cached_property
    def tile_of(self) -> dict[int, Coordinate]:
        """The tile that each device id holds."""
        return {
            device: tuple(self._mixed_radix(axes, place) for axes in self.spec)
            for device, place in self.place_of.items()
        }

    @functools.cached_property
    def holders(self) -> dict[Coordinate, tuple[int, ...]]:
        """The devices that hold each tile, in mesh order."""
        groups: dict[Coordinate, list[int]] = {}
        for device, tile in self.tile_of.items():
            groups.setdefault(tile, []).append(device)
        return {tile: tuple(group) for tile, group in groups.items()}

    @property
    def in_order(self) -> bool:
        """Whether every dim is split over its axes in mesh order, for which XLA's partitioner knows direct ways."""
        order = {name: i for i, (name, _) in enumerate(self.axes)}
        return all(list(axes) == sorted(axes, key=order.__getitem__) for axes in self.spec)

    def _mixed_radix(self, axes: tuple[str, ...], index: dict[str, int]) -> int:
        sizes = dict(self.axes)
        return functools.reduce(lambda value, axis: value * sizes[axis] + index[axis], axes, 0)

    def refined(self, dims: dict[str, int]) -> Tiling:
        """Return the tiling with each given free axis splitting the given dim further, inside its present tiles."""
        extra = [tuple(axis for axis in self.free_axes if dims.get(axis) == dim) for dim in range(len(self.spec))]
        return dataclasses.replace(
            self, spec=tuple((*axes, *more) for axes, more in zip(self.spec, extra, strict=True))
        )

    @property
    def partition_spec(self) -> PartitionSpec:
        """The same as a PartitionSpec."""
        return PartitionSpec(*(axes or None for axes in self.spec))


def common_part(
    shape: tuple[int, ...], source: Tiling, mine: Coordinate, destination: Tiling, theirs: Coordinate
) -> tuple[Coordinate, Coordinate] | None:
    """Return the corners of what a tile of one tiling has in common with one of another; None where that is nothing."""
    tiles = [(source.counts, mine), (destination.counts, theirs)]
    start = tuple(max(index[dim] * size // counts[dim] for counts, index in tiles) for dim, size in enumerate(shape))
    stop = tuple(
        min((index[dim] + 1) * size // counts[dim] for counts, index in tiles) for dim, size in enumerate(shape)
    )
    return (start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None


def tiling_of(sharding: NamedSharding, ndim: int) -> Tiling:
    """Return the tiling of an array of `ndim` dims by a NamedSharding. Raises BoundaryError if that names more."""
    entries = [() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in sharding.spec]
    if len(entries) > ndim:
        raise BoundaryError(
            f"boundary: {sharding.spec} names {len(entries)} dims, but the tensor has {ndim}; shorten the spec"
        )
    entries += [()] * (ndim - len(entries))
    mesh = sharding.mesh
    return Tiling(
        axes=tuple(mesh.shape.items()),
        devices=tuple(device.id for device in mesh.devices.flat),
        spec=tuple(entries),
    )
