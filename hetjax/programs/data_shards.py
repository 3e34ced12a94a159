"""Runs a function of a batch on each shard of `data` by itself, on the shard's own samples.

Where samples do not see each other, the gradient of a weight is a sum over the shards of the batch. Left to
itself, the partitioner adds the shards up in the backward of every microbatch. Run shard by shard instead,
each keeps a sum of its own, with a leading dim over `data`, and the shards are added up once a step: for m
microbatches a m-th of the bytes, and a program whose devices need not wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from hetjax.compilation.compiled_program import ArrayTree

AXIS = "data"


def by_shard(function: Callable[..., ArrayTree], shards: int, shared: tuple[int, ...]) -> Callable[..., ArrayTree]:
    """Return `function` mapped over a leading dim of `shards` of its arguments; those at `shared` are for all.

    A shared argument is the same object inside as any other use of it, by which residuals recognize it.
    """

    def run(*arguments: ArrayTree) -> ArrayTree:
        axes = tuple(None if i in shared else 0 for i in range(len(arguments)))
        return jax.vmap(function, in_axes=axes, axis_size=shards, spmd_axis_name=AXIS)(*arguments)

    return run


def split(tree: ArrayTree, shards: int) -> ArrayTree:
    """Reshape [B, ...] to [shards, B/shards, ...]: the batch is split over `data` first, so that nothing moves."""
    return jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), tree)


def merge(tree: ArrayTree) -> ArrayTree:
    """Reshape [shards, B/shards, ...] to [B, ...]: the reverse of `split`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
