"""Runs a boundary's plan in one process, from device to device and never through the host.

`jax.device_put` of a whole sharded array reads it to the host whenever a destination shard is not
also a shard of the source. So only single-device pieces are put, each of them a whole array.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hetjax.boundary.plan import BoundaryPlan, make_plan
from hetjax.boundary.tiling import Tiling, tiling_of

Program = Callable[..., jax.Array]


class Transport:
    """A compiled crossing for one shape and dtype; call it with an array on `source`."""

    def __init__(
        self, source: NamedSharding, destination: NamedSharding, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
    ):
        self.source, self.destination = source, destination
        self.shape, self.dtype = tuple(shape), jnp.dtype(dtype)
        ndim = len(self.shape)
        self.plan = make_plan(self.shape, self.dtype.itemsize, tiling_of(source, ndim), tiling_of(destination, ndim))
        self._split: Program | None = None
        self._join: Program | None = None

    def compile(self) -> Transport:
        """Compile the programs at both ends; harmless to call twice."""
        if self.plan.in_one_program:
            self._join = self._join or _reshard(self)
        else:
            self._split = self._split or _split(self)
            self._join = self._join or _join(self)
            self._wire()
        return self

    def _wire(self) -> None:
        """Look up once which device puts what where."""
        devices = {device.id: device for device in self.destination.mesh.devices.flat}
        order = {device: i for i, device in enumerate(self.plan.destination.devices)}
        moves = sorted(self.plan.moves, key=lambda move: (move.destination_slot, order[move.destination]))
        self._takes = [(move.source_slot, move.source) for move in moves]
        self._targets = [devices[move.destination] for move in moves]
        slot_shape = tuple(
            size // cells * count
            for size, cells, count in zip(self.shape, self.plan.grid, self.plan.destination_fine.counts, strict=True)
        )
        fine = NamedSharding(self.destination.mesh, self.plan.destination_fine.partition_spec)
        self._assemble = functools.partial(jax.make_array_from_single_device_arrays, slot_shape, fine)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self._join is None:
            self.compile()
        if self.plan.in_one_program:
            return self._join(x)
        slots = [{shard.device.id: shard.data for shard in slot.addressable_shards} for slot in self._split(x)]
        pieces = jax.device_put([slots[slot][device] for slot, device in self._takes], self._targets)
        width = len(self.plan.destination.devices)
        return self._join(*(self._assemble(group) for group in _groups(pieces, width)))


def _reshard(transport: Transport) -> Program:
    """One program over the devices that both meshes list in the same order."""
    if transport.source == transport.destination:
        return lambda x: x
    if transport.plan.stays:
        # The same buffers under the destination's own mesh and axis names.
        return lambda x: jax.make_array_from_single_device_arrays(
            x.shape, transport.destination, [shard.data for shard in x.addressable_shards]
        )
    argument = jax.ShapeDtypeStruct(transport.shape, transport.dtype, sharding=transport.source)
    return jax.jit(lambda x: x, out_shardings=transport.destination).lower(argument).compile()


def _split(transport: Transport) -> Program:
    """On the source mesh: the tensor as slots, each with one piece of every device."""
    fine = transport.plan.source_fine
    spans = _spans(transport.plan, fine)
    if fine == transport.plan.source and math.prod(spans) == 1:
        return lambda x: (x,)

    def slots(block: jax.Array) -> tuple[jax.Array, ...]:
        sizes = [size // span for size, span in zip(block.shape, spans, strict=True)]
        starts = itertools.product(*(range(0, span * size, size) for span, size in zip(spans, sizes, strict=True)))
        return tuple(block[tuple(slice(i, i + size) for i, size in zip(start, sizes, strict=True))] for start in starts)

    spec = fine.partition_spec
    cut = jax.shard_map(
        slots, mesh=transport.source.mesh, in_specs=spec, out_specs=(spec,) * math.prod(spans), check_vma=False
    )
    argument = jax.ShapeDtypeStruct(transport.shape, transport.dtype, sharding=transport.source)
    return jax.jit(cut).lower(argument).compile()


def _join(transport: Transport) -> Program:
    """On the destination mesh: the tensor from its slots, gathered where it shall be replicated."""
    fine = transport.plan.destination_fine
    spans = _spans(transport.plan, fine)
    if fine == transport.plan.destination and math.prod(spans) == 1:
        return lambda slot: slot

    def block(*slots: jax.Array) -> jax.Array:
        pieces = list(slots)
        for dim in reversed(range(len(spans))):
            pieces = [jnp.concatenate(group, axis=dim) for group in _groups(pieces, spans[dim])]
        return pieces[0]

    spec = fine.partition_spec
    count = math.prod(spans)
    mesh = transport.destination.mesh
    joined = jax.shard_map(block, mesh=mesh, in_specs=(spec,) * count, out_specs=spec, check_vma=False)
    shape = tuple(size // span for size, span in zip(transport.shape, spans, strict=True))
    argument = jax.ShapeDtypeStruct(shape, transport.dtype, sharding=NamedSharding(mesh, spec))
    return jax.jit(joined, out_shardings=transport.destination).lower(*[argument] * count).compile()


def _spans(plan: BoundaryPlan, tiling: Tiling) -> tuple[int, ...]:
    """Pieces along each dim inside one tile."""
    return tuple(cells // count for cells, count in zip(plan.grid, tiling.counts, strict=True))


def _groups(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
