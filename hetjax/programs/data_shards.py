"""A function of a batch run by each shard of `data` on its own samples.

Where samples do not see each other, the gradient of a weight is a sum over the shards of the batch. Left to
itself, the partitioner adds the shards up in the backward of every microbatch. Run shard by shard instead,
each keeps a sum of its own, with a leading dim over `data`, and the shards are added up once a step: for m
microbatches a m-th of the bytes, and a program whose devices need not wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

AXIS = "data"


def by_shard(function: Callable[..., Any], shards: int, shared: tuple[int, ...]) -> Callable[..., Any]:
    """`function` over arguments with a leading dim of `shards`; those at the positions `shared` are for all of them.

    A shared argument is the same object inside as any other use of it, so that residuals can tell it.
    """

    def run(*arguments: Any) -> Any:
        axes = tuple(None if i in shared else 0 for i in range(len(arguments)))
        return jax.vmap(function, in_axes=axes, axis_size=shards, spmd_axis_name=AXIS)(*arguments)

    return run


def split(tree: Any, shards: int) -> Any:
    """[B, ...] as [shards, B/shards, ...]: the batch is split over `data` first, so that nothing moves."""
    return jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), tree)


def merge(tree: Any) -> Any:
    """The reverse of `split`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
