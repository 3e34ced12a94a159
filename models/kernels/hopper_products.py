"""Multiply groups of rows by a matrix each with the kernels for Hopper GPUs that JAX ships.

They are experimental, and the only ones in JAX: on a GPU `jax.lax.ragged_dot` becomes one dense product, in which every
row is repeated for every group. Here and nowhere else they are called. They take 16 bits a number, and widths that
tiles of 64 divide; rows of a group begin anywhere.
"""

from __future__ import annotations

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.kernels.fused_attention import compute_capability

# M rows · E groups · D columns of the rows · F columns of the result

TILE = 64
"""What a width is a multiple of: the columns that one product of a warp group takes at a time."""
ROWS = 128
"""What the number of rows is a multiple of: the rows of a tile."""
_LARGEST_TILE = 128 * 192
"""Numbers of a tile of results, held in registers: 192 of the 255 that each of 128 threads has."""
_STAGES = 4
"""Tiles of both factors on their way while one pair is multiplied: 160 KiB at most of the 227 that a block may hold."""


class _Kernels(NamedTuple):
    ragged: types.ModuleType
    transposed: types.ModuleType


def can_multiply(dtype: jnp.dtype, device: jax.Device) -> bool:
    """Return whether the kernels take such numbers on devices like this one, and can be imported."""
    return compute_capability(device) == (9, 0) and dtype in (jnp.bfloat16, jnp.float16) and _kernels() is not None


# A scope names each kernel in the text of a compiled program, from which products are counted.
@jax.named_scope("ragged_dot")
def hopper_product(
    x: Float[Array, "M _"], kernel: Float[Array, "E D F"], sizes: Int[Array, " E"], *, transposed: bool
) -> Float[Array, "M _"]:
    """Return the rows of each group times its matrix, or that transposed; rows behind the last group say nothing."""
    columns = kernel.shape[1 if transposed else 2]
    return _kernels().ragged.ragged_dot(
        x,
        kernel,
        group_sizes=sizes,
        block_m=ROWS,
        block_n=_tile(ROWS, columns),
        block_k=TILE,
        max_concurrent_steps=_STAGES,
        grid_block_n=1,
        transpose_rhs=transposed,
    )


@jax.named_scope("transposed_ragged_dot")
def hopper_kernel_gradient(
    x: Float[Array, "M D"], gradient: Float[Array, "M F"], sizes: Int[Array, " E"]
) -> Float[Array, "E D F"]:
    """Return for each group its rows of x, transposed, times those of the gradient; the other rows are finite."""
    columns = x.shape[1]
    rows = next(rows for rows in (ROWS, TILE) if columns % rows == 0)
    return _kernels().transposed.transposed_ragged_dot(
        x,
        gradient,
        group_sizes=sizes,
        block_m=rows,
        block_n=_tile(rows, gradient.shape[1]),
        block_k=TILE,
        max_concurrent_steps=_STAGES,
        grid_block_n=1,
    )


def _tile(rows: int, columns: int) -> int:
    """The most columns of a tile of results with so many rows."""
    sizes = (size for size in (192, 128, TILE) if columns % size == 0 and rows * size <= _LARGEST_TILE)
    return next(sizes)


@functools.cache
def _kernels() -> _Kernels | None:
    """The modules of the kernels; None where something that they import is not installed (of jax 0.12 absl-py)."""
    try:
        from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu, transposed_ragged_dot_mgpu
    except ImportError:
        return None
    # It asks `jax.devices()` for the number of multiprocessors, which only a machine with such a GPU can say. The other
    # kernel takes 132, those of an H100 or H200.
    transposed_ragged_dot_mgpu.jax = _JaxOfHopper()
    return _Kernels(ragged_dot_mgpu, transposed_ragged_dot_mgpu)


class _JaxOfHopper:
    """The package `jax`, with a device of 132 multiprocessors."""

    def __getattr__(self, name: str) -> object:
        return getattr(jax, name)

    def devices(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(core_count=132)]
