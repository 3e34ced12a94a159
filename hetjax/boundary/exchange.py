"""Carries a tensor by one program over the devices of both meshes, in however many processes they are.

Each device gives its source tile (zeros where it has none) and gets its destination tile. In between,
pieces go in rounds of `ppermute`: in a round a device sends to one device and receives from one at most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.boundary.bits import from_bits, to_bits
from hetjax.boundary.ends import join_tile, leading, split_tile
from hetjax.boundary.plan import BoundaryPlan
from hetjax.boundary.rounds import Round, make_rounds
from hetjax.boundary.route import Move, spans
from hetjax.boundary.tiling import Tiling
from hetjax.boundary.union_exchange import AXIS, UnionExchange
from hetjax.compilation.compiled_program import Program


class Exchange(UnionExchange):
    """Carries a tensor from `plan.source_fine` to `plan.destination_fine` by one program.

    Every process with a device of either side calls it at the same place of its program.

    Args:
        plan: the plan.
        source: the source mesh.
        destination: sharding of the tensor that arrives.
        dtype: dtype of the tensor.

    Attributes:
        program: the program over both meshes.
    """

    def __init__(self, plan: BoundaryPlan, source: Mesh, destination: NamedSharding, dtype: jnp.dtype):
        super().__init__(
            source,
            destination,
            plan.source.devices,
            plan.destination.devices,
            block=_block_shape(plan.shape, plan.source_fine),
            arriving=leading(plan.shape),
            dtype=dtype,
        )
        self.plan = plan
        self._place = {device.id: place for place, device in enumerate(self._devices)}
        self.program = self._make_program(self._mesh)

    def __call__(self, x: jax.Array | None) -> jax.Array | None:
        """Carry `x`, on the source's fine tiling, to the destination's; None where this process has no part of either.

        A scalar comes and goes as an array of one element.
        """
        return self._carry(x)

    def _make_program(self, mesh: Mesh) -> Program:
        source_spans, destination_spans = (
            spans(self.plan.grid, tiling) or (1,) for tiling in (self.plan.source_fine, self.plan.destination_fine)
        )
        stays = [move for move in self.plan.moves if move.source == move.destination]
        rounds = make_rounds(self.plan.moves)

        def run(block: jax.Array) -> jax.Array:
            place = jax.lax.axis_index(AXIS)
            pieces = jnp.stack(split_tile(to_bits(block), source_spans))
            # One slot more than a tile has, for what no device needs.
            spare = math.prod(destination_spans)
            slots = jnp.zeros((spare + 1, *pieces.shape[1:]), pieces.dtype)
            if stays:
                slots = self._put(slots, place, stays, pieces, spare)
            for each in rounds:
                slots = self._round(slots, place, each, pieces, spare)
            return from_bits(join_tile(list(slots[:spare]), destination_spans), block.dtype)

        program = jax.shard_map(
            run, mesh=mesh, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS), check_vma=False
        )
        argument = jax.ShapeDtypeStruct(self._whole, self.dtype, sharding=self._union)
        return Program("boundary exchange", program, mesh, argument)

    def _put(
        self, slots: jax.Array, place: jax.Array, stays: Sequence[Move], pieces: jax.Array, spare: int
    ) -> jax.Array:
        """Copy the pieces that stay on their device."""
        longest = max(Counter(move.source for move in stays).values())
        taken, put = self._tables(longest, spare)
        count = dict.fromkeys(self._place, 0)
        for move in stays:
            at, i = self._place[move.source], count[move.source]
            taken[at, i], put[at, i] = move.source_slot, move.destination_slot
            count[move.source] += 1
        return slots.at[jnp.asarray(put)[place]].set(pieces[jnp.asarray(taken)[place]])

    def _round(self, slots: jax.Array, place: jax.Array, each: Round, pieces: jax.Array, spare: int) -> jax.Array:
        """Send the pieces of each device pair: of the source's tile, or relayed out of the destination's."""
        held = slots if each.relay else pieces
        taken, put = self._tables(each.size, spare)
        pairs = []
        for (source, destination), moves in each.moves.items():
            pairs.append((self._place[source], self._place[destination]))
            taken[self._place[source]] = [move.source_slot for move in moves]
            put[self._place[destination]] = [move.destination_slot for move in moves]
        sent = held if len(held) == each.size == 1 else held[jnp.asarray(taken)[place]]
        return slots.at[jnp.asarray(put)[place]].set(jax.lax.ppermute(sent, AXIS, pairs))

    def _tables(self, size: int, spare: int) -> tuple[np.ndarray, np.ndarray]:
        """Return by place slots to take from, and slots to put into; at first none that matters."""
        shape = (len(self._devices), size)
        return np.zeros(shape, np.int32), np.full(shape, spare, np.int32)


def _block_shape(shape: tuple[int, ...], tiling: Tiling) -> tuple[int, ...]:
    return leading(tuple(size // count for size, count in zip(shape, tiling.counts, strict=True)))
