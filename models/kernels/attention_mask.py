"""Which keys each query of attention sees, and between which blocks of both there is anything to compute."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# B batch · S queries · T keys · P parts of the batch that bounds differ by: 1 or B · Q blocks of queries · N of keys


class Visible(NamedTuple):
    """Which keys a query sees: those up to its last one, and of these the keys of its own segment.

    Attributes:
        last: the last key that each query sees; None for all keys. The query's own position makes attention causal.
        query_segments, key_segments: ids of segments; None for one segment. Ids may come in any order, but work is
            saved only where those of a segment are neighbours and blocks of other segments do not lie between them.
    """

    last: Int[Array, "#B S"] | None = None
    query_segments: Int[Array, "B S"] | None = None
    key_segments: Int[Array, "B T"] | None = None


def causal(length: int) -> Int[Array, "1 S"]:
    """Return the last key that each query sees where queries and keys are the same positions."""
    return jnp.arange(length, dtype=jnp.int32)[None]


def seen(
    last: Int[Array, "*B S"] | None,
    query_segments: Int[Array, "*B S"] | None,
    key_segments: Int[Array, "*B T"] | None,
    keys: Int[Array, " T"],
) -> Bool[Array, "*B S T"] | None:
    """Return whether each query sees each of the keys, of which `keys` are the positions; None where it sees all."""
    mask = None if last is None else keys <= last[..., None]
    if query_segments is None:
        return mask
    same = query_segments[..., :, None] == key_segments[..., None, :]
    return same if mask is None else mask & same


def block_overlaps(visible: Visible, queries: int, keys: int, block_q: int, block_k: int) -> Bool[Array, "P Q N"]:
    """Return whether a query of each block may see a key of each block, by the least and largest ids of both.

    It never misses one; it may hold for blocks that share no segment where ids are not in order.
    """
    overlaps = jnp.ones((1, -(-queries // block_q), -(-keys // block_k)), bool)
    if visible.last is not None:
        furthest = _by_block(visible.last, block_q, jnp.max, -1)
        first = jnp.arange(overlaps.shape[2], dtype=jnp.int32) * block_k
        overlaps &= first <= furthest[:, :, None]
    if visible.query_segments is not None:
        q_least, q_largest = _range(visible.query_segments, block_q)
        k_least, k_largest = _range(visible.key_segments, block_k)
        overlaps &= (q_least[:, :, None] <= k_largest[:, None]) & (k_least[:, None] <= q_largest[:, :, None])
    return overlaps


def bounds(overlaps: Bool[Array, "P Q N"]) -> tuple[Int[Array, "P Q"], Int[Array, "P Q"]]:
    """Return (the first block of keys with anything for each block of queries, the one behind the last); int32.

    Both are 0 where there is none. Those of queries for each block of keys come from the transposed array.
    """
    count = overlaps.shape[2]
    any_at_all = overlaps.any(axis=2)
    first = jnp.argmax(overlaps, axis=2).astype(jnp.int32)
    stop = count - jnp.argmax(overlaps[:, :, ::-1], axis=2).astype(jnp.int32)
    return jnp.where(any_at_all, first, 0), jnp.where(any_at_all, stop, 0)


def _range(ids: Int[Array, "B S"], block: int) -> tuple[Int[Array, "B Q"], Int[Array, "B Q"]]:
    limits = jnp.iinfo(ids.dtype)
    return _by_block(ids, block, jnp.min, limits.max), _by_block(ids, block, jnp.max, limits.min)


def _by_block(x: Int[Array, "B S"], block: int, reduce, fill: int) -> Int[Array, "B Q"]:
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), constant_values=fill)
    return reduce(padded.reshape(x.shape[0], -1, block), axis=2)
