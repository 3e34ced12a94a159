"""The programs at the two ends of a boundary, each on one mesh.

Splitting only slices. Joining broadcasts and gathers inside the destination mesh. Both are written out
with `shard_map`, so that what they send is what the plan says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hetjax.boundary.bits import from_bits, to_bits
from hetjax.boundary.plan import BoundaryPlan
from hetjax.boundary.rounds import broadcast_rounds
from hetjax.boundary.route import spans
from hetjax.compilation.compiled_program import Program


def split_tile(block: jax.Array, inside: Sequence[int]) -> list[jax.Array]:
    """Return the pieces of a tile, `inside` along each dim, in row-major order."""
    sizes = [size // span for size, span in zip(block.shape, inside, strict=True)]
    starts = itertools.product(*(range(0, span * size, size) for span, size in zip(inside, sizes, strict=True)))
    return [block[tuple(slice(i, i + size) for i, size in zip(start, sizes, strict=True))] for start in starts]


def join_tile(pieces: Sequence[jax.Array], inside: Sequence[int]) -> jax.Array:
    """Return the tile of these pieces: the reverse of `split_tile`."""
    pieces = list(pieces)
    for dim in reversed(range(len(inside))):
        pieces = [jnp.concatenate(group, axis=dim) for group in _groups(pieces, inside[dim])]
    return pieces[0]


def _groups(items: list, size: int) -> list[list]:
    """Return consecutive items, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def leading(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape, (1,) for a scalar: with a leading dim, along which the blocks of several devices can lie."""
    return shape or (1,)


def split_program(plan: BoundaryPlan, source: NamedSharding, dtype: jnp.dtype, *, whole: bool) -> Program | None:
    """Return the program on the source mesh: tensor -> slots with one piece of every device each.

    With `whole` there is one slot with the whole tile, and a scalar becomes an array of one element: see `leading`.
    None where the tensor is its one slot as it is.
    """
    fine = plan.source_fine
    inside = (1,) * len(plan.shape) if whole else spans(plan.grid, fine)
    count = math.prod(inside)
    if fine == plan.source and count == 1 and not (whole and plan.shape == ()):
        return None
    spec = fine.partition_spec

    def split(block: jax.Array) -> tuple[jax.Array, ...]:
        bits = to_bits(block)
        pieces = [bits.reshape(leading(bits.shape))] if whole else split_tile(bits, inside)
        return tuple(from_bits(piece, dtype) for piece in pieces)

    slots = jax.shard_map(
        split,
        mesh=source.mesh,
        in_specs=spec,
        out_specs=(spec,) * count,
        check_vma=False,
    )
    argument = jax.ShapeDtypeStruct(plan.shape, dtype, sharding=source)
    return Program("boundary split", slots, source.mesh, argument)


def join_program(plan: BoundaryPlan, destination: NamedSharding, dtype: jnp.dtype, *, whole: bool) -> Program | None:
    """Return the program on the destination mesh: slots, or one that is `whole` -> tensor, broadcast and gathered.

    None where the tensor is its one slot as it is.
    """
    fine, mesh = plan.destination_fine, destination.mesh
    inside = (1,) * len(plan.shape) if whole else spans(plan.grid, fine)
    count = math.prod(inside)
    if fine == plan.destination and count == 1 and not plan.broadcast_axes and not (whole and plan.shape == ()):
        return None

    def joined(*slots: jax.Array) -> jax.Array:
        bits = [to_bits(slot) for slot in slots]
        block = join_tile(bits, inside) if plan.shape else bits[0].reshape(())
        if plan.broadcast_axes:
            block = _broadcast(block, plan.broadcast_axes, math.prod(mesh.shape[axis] for axis in plan.broadcast_axes))
        for dim, (coarse, axes) in enumerate(zip(plan.destination.spec, fine.spec, strict=True)):
            if len(axes) > len(coarse):
                block = jax.lax.all_gather(block, axes[len(coarse) :], axis=dim, tiled=True)
        return from_bits(block, dtype)

    spec = fine.partition_spec
    shape = tuple(size // span for size, span in zip(plan.shape, inside, strict=True))
    shape = leading(shape) if whole else shape
    argument = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    program = jax.shard_map(
        joined, mesh=mesh, in_specs=(spec,) * count, out_specs=plan.destination.partition_spec, check_vma=False
    )
    return Program("boundary join", program, mesh, *[argument] * count, out_shardings=destination)


def _broadcast(block: jax.Array, axes: tuple[str, ...], size: int) -> jax.Array:
    """Return what the first device along the axes holds, on all."""
    place = jax.lax.axis_index(axes)
    # Before the round in which the first sends to place n, all below n have it.
    for pairs in broadcast_rounds(size):
        block = jnp.where(place < pairs[0][1], block, jax.lax.ppermute(block, axes, pairs))
    return block
