"""Carries tokens by one program over the devices of both meshes, each where a table says.

Every device gives its source tile (zeros where it has none) and gets its destination tile. In between tokens cross

    ragged    by `ragged_all_to_all`: what must move, and nothing else (not on CPU)
    dense     by `all_to_all`, in queues as long as the fullest may be, on every backend
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from hetjax.boundary.bits import from_bits, to_bits
from hetjax.boundary.ragged.places import RaggedPlaces
from hetjax.boundary.ragged.tables import DeviceTables
from hetjax.boundary.union_exchange import AXIS, UnionExchange
from hetjax.compilation.compiled_program import Program

# D devices of both meshes · S units sent at most · R units received at most · U units of a tile · W elements of a unit


class RaggedExchange(UnionExchange):
    """Carries tokens from `places.source_fine` to `places.destination_fine` by one program.

    Every process with a device of either side calls it at the same place of its program.

    Args:
        places: where tokens lie.
        source: the source mesh.
        destination: sharding of the tensor that arrives.
        dtype: dtype of the tensor.
        shifted: whether to add to what arrives, in every slot, a number of the tables.

    Attributes:
        program: the program over both meshes.
        ragged: whether exactly the tokens travel that must.
    """

    def __init__(
        self, places: RaggedPlaces, source: Mesh, destination: NamedSharding, dtype: jnp.dtype, *, shifted: bool
    ):
        super().__init__(
            source,
            destination,
            places.source.devices,
            places.destination.devices,
            block=_block(places.source_shape, places.source_fine.counts),
            arriving=places.destination_shape,
            dtype=dtype,
        )
        self.places, self.shifted = places, shifted
        self.ragged = self._devices[0].platform != "cpu"
        # CPU devices run programs on threads that they share. Those without a source tile could begin at once, and of
        # several exchanges they would take all threads, waiting for devices that then have none to compute on.
        self._waits = not self.ragged and jax.process_count() == 1 and self._senders != set(places.devices)
        self.program = self._make_program(self._mesh)

    @property
    def queue(self) -> int:
        """Units that the fullest queue of one device for another may hold; queues of this length cross where dense."""
        return min(self.places.most_sent, math.prod(self.places.destination_tile))

    @property
    def bytes_sent(self) -> int | None:
        """Bytes that cross whatever the tables say; None where as many as must move."""
        count = len(self._devices)
        return None if self.ragged else count * (count - 1) * self.queue * self.places.unit_bytes

    def place(self, tables: DeviceTables, shift: Int[np.ndarray, "B M"] | None = None) -> tuple[jax.Array, ...]:
        """Dispatch the copies of the tables to the devices of this process: what calls take beside the tensor.

        Nothing in a process without a device of either side.
        """
        if not self._own:
            return ()
        sent, counts, taken = tables if self.ragged else self._in_queues(tables)
        arrays = [sent, np.broadcast_to(counts, (len(sent), *counts.shape)), taken]
        if self.shifted:
            arrays.append(self._tiles(shift))
        return tuple(
            jax.make_array_from_callback(array.shape, self._union, lambda index, array=array: array[index])
            for array in arrays
        )

    def __call__(self, x: jax.Array | None, tables: tuple[jax.Array, ...]) -> jax.Array | None:
        """Carry `x`, on the source's fine tiling, to the destination's; None where this process has no part of either.

        `tables` are what `place` returned. On CPU devices of one process it waits for `x`.
        """
        if self._waits:
            jax.block_until_ready((x, tables))
        return self._carry(x, *tables)

    @property
    def _sizes(self) -> tuple[int, int]:
        """Units that a device has room for: to send, and to receive."""
        if self.ragged:
            return self.places.most_sent, math.prod(self.places.destination_tile)
        return (len(self._devices) * self.queue,) * 2

    def _in_queues(self, tables: DeviceTables) -> DeviceTables:
        """Return the tables with a queue of one length for each device."""
        count, length = len(self._devices), self.queue
        sent = np.zeros((count, count * length), np.int32)
        taken = tables.taken.copy()
        starts, before = np.cumsum(tables.counts, axis=1) - tables.counts, np.cumsum(tables.counts, axis=0)
        for source, destination in np.argwhere(tables.counts):
            size, start = tables.counts[source, destination], starts[source, destination]
            sent[source, destination * length :][:size] = tables.sent[source, start : start + size]
        for place in range(count):
            arriving = tables.taken[place] >= 0
            number = tables.taken[place][arriving]
            source = np.searchsorted(before[:, place], number, side="right")
            taken[place][arriving] = source * length + number - (before - tables.counts)[source, place]
        return DeviceTables(sent, tables.counts, taken)

    def _tiles(self, shift: Int[np.ndarray, "B M"]) -> Int[np.ndarray, "D rows slots"]:
        """Return the part of each device; zeros where it is none of the destination."""
        rows, slots, _ = self.places.destination_tile
        tiles = np.zeros((len(self._devices), rows, slots), np.int32)
        for (row, slot, *_), devices in self.places.destination_fine.holders.items():
            part = shift[row * rows : (row + 1) * rows, slot * slots : (slot + 1) * slots]
            for device in devices:
                tiles[self.places.devices.index(device)] = part
        return tiles

    def _make_program(self, mesh: Mesh) -> Program:
        places = self.places
        out = _block(places.destination_shape, places.destination_fine.counts)
        width = places.width // places.lanes

        def run(block: jax.Array, sent: jax.Array, counts: jax.Array, taken: jax.Array, *shift: jax.Array) -> jax.Array:
            units = to_bits(block).reshape(-1, width)
            arrived = self._cross(units[sent[0]], counts[0])
            number = taken[0]
            # Beyond every unit: filled with zeros.
            far = max(len(arrived), len(units))
            here = arrived.at[jnp.where(number >= 0, number, far)].get(mode="fill", fill_value=0)
            own = units.at[jnp.where(number <= -2, -2 - number, far)].get(mode="fill", fill_value=0)
            found = from_bits(jnp.where((number >= 0)[:, None], here, own), block.dtype).reshape(out)
            return found + shift[0][0].astype(found.dtype) if shift else found

        count, tiles = len(places.devices), math.prod(places.destination_tile)
        ints = [(count, self._sizes[0]), (count, count, count), (count, tiles)]
        ints += [(count, *places.destination_tile[:2])] if self.shifted else []
        arguments = [jax.ShapeDtypeStruct(self._whole, self.dtype, sharding=self._union)]
        arguments += [jax.ShapeDtypeStruct(shape, np.int32, sharding=self._union) for shape in ints]
        program = jax.shard_map(
            run, mesh=mesh, in_specs=(PartitionSpec(AXIS),) * len(arguments), out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )  # fmt: skip
        return Program("ragged boundary", program, mesh, *arguments)

    def _cross(self, units: Shaped[Array, "S W"], counts: Int[Array, "D D"]) -> Shaped[Array, "R W"]:
        if not self.ragged:
            queues = units.reshape(len(self._devices), self.queue, -1)
            return jax.lax.all_to_all(queues, AXIS, 0, 0).reshape(units.shape)
        me = jax.lax.axis_index(AXIS)
        sent, received = counts[me], counts[:, me]
        targets = (jnp.cumsum(counts, axis=0) - counts)[me]
        room = jnp.zeros((self._sizes[1], units.shape[1]), units.dtype)
        return jax.lax.ragged_all_to_all(units, room, jnp.cumsum(sent) - sent, sent, targets, received, axis_name=AXIS)


def _block(shape: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size // count for size, count in zip(shape, counts, strict=True))
