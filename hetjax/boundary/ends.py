"""The programs at the two ends of a boundary, each on one mesh.

Splitting only slices. Joining broadcasts and gathers inside the destination mesh. Both are written out
with `shard_map`, so that what they send is what the plan says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hetjax.boundary.bits import from_bits, to_bits
from hetjax.boundary.plan import BoundaryPlan
from hetjax.boundary.rounds import broadcast_rounds
from hetjax.boundary.route import spans

Program = Callable[..., jax.Array]


def cut(block: jax.Array, inside: Sequence[int]) -> list[jax.Array]:
    """A tile as its pieces, in row-major order."""
    sizes = [size // span for size, span in zip(block.shape, inside, strict=True)]
    starts = itertools.product(*(range(0, span * size, size) for span, size in zip(inside, sizes, strict=True)))
    return [block[tuple(slice(i, i + size) for i, size in zip(start, sizes, strict=True))] for start in starts]


def glue(pieces: Sequence[jax.Array], inside: Sequence[int]) -> jax.Array:
    """The reverse of `cut`."""
    pieces = list(pieces)
    for dim in reversed(range(len(inside))):
        pieces = [jnp.concatenate(group, axis=dim) for group in groups(pieces, inside[dim])]
    return pieces[0]


def groups(items: list, size: int) -> list[list]:
    """Consecutive items, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def leading(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with a leading dim, along which the blocks of several devices can lie: a scalar has none."""
    return shape or (1,)


def split_program(plan: BoundaryPlan, source: NamedSharding, dtype: jnp.dtype, *, whole: bool) -> Program:
    """On the source mesh: the tensor as slots with one piece of every device each, or `whole` in one slot.

    A scalar that is `whole` becomes an array of one element: see `leading`.
    """
    fine = plan.source_fine
    inside = (1,) * len(plan.shape) if whole else spans(plan.grid, fine)
    count = math.prod(inside)
    if fine == plan.source and count == 1 and not (whole and plan.shape == ()):
        return lambda x: (x,)
    spec = fine.partition_spec

    def split(block: jax.Array) -> tuple[jax.Array, ...]:
        bits = to_bits(block)
        pieces = [bits.reshape(leading(bits.shape))] if whole else cut(bits, inside)
        return tuple(from_bits(piece, dtype) for piece in pieces)

    slots = jax.shard_map(
        split,
        mesh=source.mesh,
        in_specs=spec,
        out_specs=(spec,) * count,
        check_vma=False,
    )
    argument = jax.ShapeDtypeStruct(plan.shape, dtype, sharding=source)
    return jax.jit(slots).lower(argument).compile()


def join_program(plan: BoundaryPlan, destination: NamedSharding, dtype: jnp.dtype, *, whole: bool) -> Program:
    """On the destination mesh: the tensor from its slots, or from one that is `whole`; broadcast and gathered."""
    fine, mesh = plan.destination_fine, destination.mesh
    inside = (1,) * len(plan.shape) if whole else spans(plan.grid, fine)
    count = math.prod(inside)
    if fine == plan.destination and count == 1 and not plan.broadcast_axes and not (whole and plan.shape == ()):
        return lambda slot: slot

    def joined(*slots: jax.Array) -> jax.Array:
        bits = [to_bits(slot) for slot in slots]
        block = glue(bits, inside) if plan.shape else bits[0].reshape(())
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
    return jax.jit(program, out_shardings=destination).lower(*[argument] * count).compile()


def _broadcast(block: jax.Array, axes: tuple[str, ...], size: int) -> jax.Array:
    """What the first device along the axes holds, on all."""
    place = jax.lax.axis_index(axes)
    # Before the round in which the first sends to place n, all below n have it.
    for pairs in broadcast_rounds(size):
        block = jnp.where(place < pairs[0][1], block, jax.lax.ppermute(block, axes, pairs))
    return block
