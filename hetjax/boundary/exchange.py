"""The crossing as one program over the devices of both meshes, in however many processes they are.

Each device gives its source tile (zeros where it has none) and gets its destination tile. In between,
pieces go in rounds of `ppermute`: in a round a device sends to one device and receives from one at most.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.boundary.bits import from_bits, to_bits
from hetjax.boundary.ends import cut, glue, leading
from hetjax.boundary.plan import BoundaryPlan
from hetjax.boundary.rounds import Round, make_rounds
from hetjax.boundary.route import Move, spans
from hetjax.boundary.tiling import Tiling
from hetjax.compilation.dispatch_order import in_order

AXIS = "devices"


class Exchange:
    """A compiled crossing from `plan.source_fine` to `plan.destination_fine`, the latter as the sharding `destination`.

    Every process with a device of either side calls it at the same place of its program.
    """

    def __init__(self, plan: BoundaryPlan, source: Mesh, destination: NamedSharding, dtype: jnp.dtype):
        self.plan, self.dtype = plan, dtype
        devices = {device.id: device for mesh in (source, destination.mesh) for device in mesh.devices.flat}
        self._devices = [devices[number] for number in sorted(devices)]
        self._place = {device.id: place for place, device in enumerate(self._devices)}
        self._own = [device for device in self._devices if device.process_index == jax.process_index()]
        self._output = destination
        self._senders, self._receivers = set(plan.source.devices), set(plan.destination.devices)
        self._block = _block_shape(plan.shape, plan.source_fine)
        # Made here, so that no zeros travel from the host while a step runs.
        self._blanks = {
            device.id: _blank(device, self._block, dtype) for device in self._own if device.id not in self._senders
        }
        mesh = Mesh(np.array(self._devices), (AXIS,))
        self._union = NamedSharding(mesh, PartitionSpec(AXIS))
        self._program = self._compile(mesh)
        self._run = in_order(self._program, mesh)

    @property
    def text(self) -> str:
        """The compiled program."""
        return self._program.as_text()

    def __call__(self, x: jax.Array | None) -> jax.Array | None:
        """`x` on the source's fine tiling; the result on the destination's, None where this process has no part.

        A scalar comes and goes as an array of one element.
        """
        given = {shard.device.id: shard.data for shard in x.addressable_shards} if x is not None else {}
        blocks = [given[d.id] if d.id in self._senders else self._blanks[d.id] for d in self._own]
        done = self._run(jax.make_array_from_single_device_arrays(self._whole, self._union, blocks))
        arrays = [shard.data for shard in done.addressable_shards if shard.device.id in self._receivers]
        if not arrays:
            return None
        return jax.make_array_from_single_device_arrays(leading(self.plan.shape), self._output, arrays)

    @property
    def _whole(self) -> tuple[int, ...]:
        """All devices' source tiles, one behind the other."""
        return (len(self._devices) * self._block[0], *self._block[1:])

    def _compile(self, mesh: Mesh):
        source_spans, destination_spans = (
            spans(self.plan.grid, tiling) or (1,) for tiling in (self.plan.source_fine, self.plan.destination_fine)
        )
        stays = [move for move in self.plan.moves if move.source == move.destination]
        rounds = make_rounds(self.plan.moves)

        def run(block: jax.Array) -> jax.Array:
            here = jax.lax.axis_index(AXIS)
            pieces = jnp.stack(cut(to_bits(block), source_spans))
            # One slot more than a tile has, for what no device needs.
            spare = math.prod(destination_spans)
            slots = jnp.zeros((spare + 1, *pieces.shape[1:]), pieces.dtype)
            if stays:
                slots = self._put(slots, here, stays, pieces, spare)
            for turn in rounds:
                slots = self._round(slots, here, turn, pieces, spare)
            return from_bits(glue(list(slots[:spare]), destination_spans), block.dtype)

        program = jax.shard_map(
            run, mesh=mesh, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS), check_vma=False
        )
        argument = jax.ShapeDtypeStruct(self._whole, self.dtype, sharding=self._union)
        return jax.jit(program).lower(argument).compile()

    def _put(self, slots, here, stays: Sequence[Move], pieces, spare: int):
        """Copy what a device keeps to itself."""
        longest = max(Counter(move.source for move in stays).values())
        taken, put = self._tables(longest, spare)
        count = dict.fromkeys(self._place, 0)
        for move in stays:
            place, i = self._place[move.source], count[move.source]
            taken[place, i], put[place, i] = move.source_slot, move.destination_slot
            count[move.source] += 1
        return slots.at[jnp.asarray(put)[here]].set(pieces[jnp.asarray(taken)[here]])

    def _round(self, slots, here, turn: Round, pieces, spare: int):
        """Send each link's pieces: of the source's tile, or handed on out of the destination's."""
        held = slots if turn.hop else pieces
        taken, put = self._tables(turn.size, spare)
        pairs = []
        for (source, destination), moves in turn.moves.items():
            pairs.append((self._place[source], self._place[destination]))
            taken[self._place[source]] = [move.source_slot for move in moves]
            put[self._place[destination]] = [move.destination_slot for move in moves]
        sent = held if len(held) == turn.size == 1 else held[jnp.asarray(taken)[here]]
        return slots.at[jnp.asarray(put)[here]].set(jax.lax.ppermute(sent, AXIS, pairs))

    def _tables(self, size: int, spare: int) -> tuple[np.ndarray, np.ndarray]:
        """By place: slots to take from, and slots to put into; at first nothing that is needed."""
        shape = (len(self._devices), size)
        return np.zeros(shape, np.int32), np.full(shape, spare, np.int32)


def _block_shape(shape: tuple[int, ...], tiling: Tiling) -> tuple[int, ...]:
    return leading(tuple(size // count for size, count in zip(shape, tiling.counts, strict=True)))


def _blank(device: jax.Device, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Zeros that stand for the source tile of a device without one; never changed, so all in use share one."""
    blank = _blanks.get((device, shape, dtype))
    if blank is None:
        blank = _blanks[device, shape, dtype] = jax.device_put(np.zeros(shape, dtype), device)
    return blank


# Not beyond the exchanges that use them: they take memory of the devices.
_blanks: weakref.WeakValueDictionary[tuple, jax.Array] = weakref.WeakValueDictionary()
