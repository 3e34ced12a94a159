"""Multiply groups of rows by a matrix each, in blocks of rows of one group: by plain operations, for any backend.

Each group's rows begin at a multiple of the block, so that no product is computed but those of the rows and of the
ends of the groups' last blocks. Small matrices are gathered for all blocks, which makes one batched product; of large
ones a loop over the blocks reads that of its group, so that memory does not grow with the number of blocks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# M rows · E groups · N blocks · D columns of the rows · F columns of the result

LARGEST_BLOCK = 512
_GATHERED = 2**20
"""Most numbers of matrices that are gathered for all blocks at once: 4 MiB in float32, which caches hold."""


def block_rows(rows: int, groups: int) -> int:
    """Return the rows of a block, so that the ends of blocks are about a quarter of so many rows at most."""
    return max(8, min(LARGEST_BLOCK, 1 << (max(rows // (4 * groups), 1).bit_length() - 1)))


def block_product(
    x: Float[Array, "M _"], kernel: Float[Array, "E D F"], sizes: Int[Array, " E"], block: int, *, transposed: bool
) -> Float[Array, "M _"]:
    """Return the rows of each group times its matrix, or that transposed; rows that belong to no group say nothing."""
    blocks = x.reshape(-1, block, x.shape[-1])
    group = _group_of_block(sizes, block, blocks.shape[0])
    subscripts = "...bf,...df->...bd" if transposed else "...bd,...df->...bf"
    if _is_gathered(blocks.shape[0], kernel.shape):
        y = jnp.einsum(subscripts, blocks, kernel[group])
    else:

        def one(_, each):
            x, group = each
            return None, jnp.einsum(subscripts, x, kernel[group])

        y = jax.lax.scan(one, None, (blocks, group))[1]
    return y.reshape(x.shape[0], -1)


def block_kernel_gradient(
    x: Float[Array, "M D"], gradient: Float[Array, "M F"], sizes: Int[Array, " E"], block: int
) -> Float[Array, "E D F"]:
    """Return for each group its rows of x, transposed, times those of the gradient, which are 0 outside of groups."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    blocks, gradients = (each.reshape(-1, block, each.shape[-1]) for each in (x, gradient))
    group = _group_of_block(sizes, block, blocks.shape[0])
    shape = sizes.shape[0], x.shape[-1], gradient.shape[-1]
    if _is_gathered(blocks.shape[0], shape):
        of_blocks = jnp.einsum("nbd,nbf->ndf", blocks, gradients, preferred_element_type=wide)
        total = jax.ops.segment_sum(of_blocks, group, shape[0], indices_are_sorted=True)
    else:

        def add(total, each):
            x, gradient, group = each
            product = jnp.einsum("bd,bf->df", x, gradient, preferred_element_type=wide)
            return total.at[group].add(product), None

        total = jax.lax.scan(add, jnp.zeros(shape, wide), (blocks, gradients, group))[0]
    return total.astype(x.dtype)


def _group_of_block(sizes: Int[Array, " E"], block: int, blocks: int) -> Int[Array, " N"]:
    """The group of each block; of those behind the last group that one."""
    ends = jnp.cumsum(-(sizes // -block), dtype=jnp.int32)
    group = jnp.searchsorted(ends, jnp.arange(blocks, dtype=jnp.int32), side="right")
    return jnp.minimum(group, sizes.shape[0] - 1).astype(jnp.int32)


def _is_gathered(blocks: int, shape: tuple[int, ...]) -> bool:
    return blocks * shape[-2] * shape[-1] <= _GATHERED
