"""Attention by blocks of queries and keys in plain operations, for every backend and dtype: no S*T array is made.

The softmax runs online (Milakov and Gimelshein 2018; Rabe and Staats 2021): of every query the largest score so far,
the sum of exp(score - largest) and the values weighted by it are kept, while its blocks of keys come one after another.
The backward pass computes the scores of each block again from the log-sum-exp of the whole softmax (Dao et al. 2022,
FlashAttention). Blocks between which no query sees a key cost nothing: loops over the others have bounds of their own.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.kernels.attention_mask import Visible, block_overlaps, bounds, seen
from hetjax.models.kernels.partial_attention import PartialAttention, merge

# B batch · S queries · T keys · H heads · G groups of heads that share a key · R heads of a group · K head width
# Functions of one sample have no B. Q blocks of L queries · N blocks of M keys

Gradients = tuple[Float[Array, "B S H K"], Float[Array, "B T G K"], Float[Array, "B T G K"]]

LONGEST_BLOCK = 512
"""Positions of a block at most. Sequences of no more are one block, computed without loops."""


class _Rows(NamedTuple):
    """What goes with the queries of a sample."""

    last: Int[Array, " S"] | None
    segments: Int[Array, " S"] | None


class _Running(NamedTuple):
    """The softmax of each query over the blocks so far, in float32 at least."""

    largest: Float[Array, "G R L"]
    total: Float[Array, "G R L"]
    values: Float[Array, "L G R K"]


def blocked_forward(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    visible: Visible,
    dtype: jax.typing.DTypeLike,
    before: PartialAttention | None = None,
) -> PartialAttention:
    """Return softmax(query · key / sqrt(K)) · value in a dtype, and the log-sum-exp of the scores in float32 at least.

    With `before`, attention to these keys and to those that it has seen. Of a query that sees no key the output is 0.
    """
    found = PartialAttention(*_by_sample(_forward, visible, query, key, value))
    found = found if before is None else merge(before, found)
    return found._replace(values=found.values.astype(dtype))


def blocked_backward(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    visible: Visible,
    log_sum: Float[Array, "B H S"],
    projection: Float[Array, "B H S"],
    gradient: Float[Array, "B S H K"],
    dtype: jax.typing.DTypeLike,
    before: Gradients | None = None,
) -> Gradients:
    """Return the gradients of query, key and value in a dtype, added to those `before`.

    `gradient` is that of the output, and `projection` its product with the output, summed over K; `log_sum` and the
    output are those of the whole softmax, of which the keys may be a part.
    """
    gradients = _by_sample(_backward, visible, query, key, value, log_sum, projection, gradient)
    if before is not None:
        gradients = jax.tree.map(jnp.add, before, tuple(gradients))
    return tuple(x.astype(dtype) for x in gradients)


def is_one_block(queries: int, keys: int) -> bool:
    """Return whether there are no more scores than those of one block."""
    return queries * keys <= LONGEST_BLOCK**2


def _by_sample(function, visible: Visible, query, key, value, *more):
    """Run a function for each sample: all at once where each is one block, else one after another.

    One after another, since the loops of a sample go from its own first to its own last block.
    """
    queries, keys = query.shape[1], key.shape[1]
    block_q, block_k = _block(queries), _block(keys)
    last = None if visible.last is None else jnp.broadcast_to(visible.last, (query.shape[0], queries))
    rows, ids = _Rows(last, visible.query_segments), visible.key_segments
    if queries <= block_q and keys <= block_k:
        return jax.vmap(partial(function, None, block_q, block_k))(query, key, value, rows, ids, *more)
    overlaps = block_overlaps(visible, queries, keys, block_q, block_k)
    if function is _backward:
        overlaps = overlaps.swapaxes(1, 2)
    ends = jax.tree.map(lambda x: jnp.broadcast_to(x, (query.shape[0], x.shape[1])), bounds(overlaps))
    run = lambda arguments: function(arguments[0], block_q, block_k, *arguments[1:])  # noqa: E731
    return jax.lax.map(run, (ends, query, key, value, rows, ids, *more))


def _block(length: int) -> int:
    """Positions of a block: blocks as equal as multiples of 8 allow."""
    if length <= LONGEST_BLOCK:
        return length
    return -(-length // (8 * math.ceil(length / LONGEST_BLOCK))) * 8


# ── one sample ───────────────────────────────────────────────────────────────────────────────────────


def _forward(ends, block_q: int, block_k: int, query, key, value, rows: _Rows, ids):
    """(output [S, H, K], log-sum-exp [H, S]) of one sample."""
    queries, heads, width = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query.reshape(queries, key.shape[1], -1, width)
    if ends is None:
        running = _add(_empty(query, wide), query, key, value, rows, ids, jnp.arange(key.shape[0]), None)
        values, log_sum = _finish(running)
        return values.reshape(queries, heads, width), log_sum.reshape(heads, queries)
    # Positions behind the end see nothing and are seen by nothing.
    length = None if key.shape[0] % block_k == 0 else key.shape[0]
    query, rows = _blocks((query, rows), block_q)
    key, value, ids = _blocks((key, value, ids), block_k)

    def of_queries(block):
        query, rows, first, stop = block

        def of_keys(number, running):
            held = _at((key, value, ids), number)
            return _add(running, query, held[0], held[1], rows, held[2], number * block_k + jnp.arange(block_k), length)

        return _finish(jax.lax.fori_loop(first, stop, of_keys, _empty(query, wide)))

    values, log_sum = jax.lax.map(of_queries, (query, rows, *ends))
    log_sum = jnp.moveaxis(log_sum, 0, 2)  # [G, R, Q, L]
    return values.reshape(-1, heads, width)[:queries], log_sum.reshape(heads, -1)[:, :queries]


def _backward(ends, block_q: int, block_k: int, query, key, value, rows: _Rows, ids, log_sum, projection, gradient):
    """Gradients of query [S, H, K], key and value [T, G, K] of one sample."""
    (queries, heads, width), (keys, groups) = query.shape, key.shape[:2]
    query, gradient = (x.reshape(queries, groups, -1, width) for x in (query, gradient))
    # [S, G, R], so that positions lead
    log_sum, projection = (jnp.moveaxis(x.reshape(groups, -1, queries), 2, 0) for x in (log_sum, projection))
    if ends is None:
        grads = _tile_gradients(query, key, value, rows, ids, jnp.arange(keys), None, log_sum, projection, gradient)
        return grads[0].reshape(queries, heads, width), *grads[1:]
    length = None if keys % block_k == 0 else keys
    # Of queries behind the end no weight is left: exp(score - largest number) = 0.
    log_sum = jnp.pad(log_sum, ((0, -queries % block_q), (0, 0), (0, 0)), constant_values=jnp.finfo(log_sum.dtype).max)
    query, rows, projection, gradient = _blocks((query, rows, projection, gradient), block_q)
    log_sum = log_sum.reshape(-1, block_q, *log_sum.shape[1:])
    key, value, ids = _blocks((key, value, ids), block_k)
    wide = log_sum.dtype

    def of_keys(d_query, block):
        number, key, value, ids, first, stop = block
        places = number * block_k + jnp.arange(block_k)

        def of_queries(index, carry):
            d_query, d_key, d_value = carry
            own = _at((query, rows, log_sum, projection, gradient), index)
            of_query, of_key, of_value = _tile_gradients(own[0], key, value, own[1], ids, places, length, *own[2:])
            d_query = jax.lax.dynamic_update_index_in_dim(d_query, _at(d_query, index) + of_query, index, 0)
            return d_query, d_key + of_key, d_value + of_value

        zero = jnp.zeros(key.shape, wide)
        d_query, *d_held = jax.lax.fori_loop(first, stop, of_queries, (d_query, zero, zero))
        return d_query, tuple(d_held)

    numbers = jnp.arange(key.shape[0], dtype=jnp.int32)
    d_query, (d_key, d_value) = jax.lax.scan(of_keys, jnp.zeros(query.shape, wide), (numbers, key, value, ids, *ends))
    return (
        d_query.reshape(-1, heads, width)[:queries],
        *(x.reshape(-1, groups, width)[:keys] for x in (d_key, d_value)),
    )


# ── one tile: a block of queries and a block of keys ─────────────────────────────────────────────────


def _empty(query: Float[Array, "L G R K"], wide) -> _Running:
    length, groups, share, width = query.shape
    shape = (groups, share, length)
    return _Running(
        jnp.full(shape, jnp.finfo(wide).min, wide), jnp.zeros(shape, wide), jnp.zeros((length, *shape[:2], width), wide)
    )


def _add(running: _Running, query, key, value, rows: _Rows, ids, places, length: int | None) -> _Running:
    scores, mask = _scores(query, key, rows, ids, places, length)
    largest = jnp.maximum(running.largest, scores.max(axis=-1))
    weights = _weights(scores, largest, mask)
    kept = jnp.exp(running.largest - largest)
    new = jnp.einsum("grst,tgk->sgrk", weights.astype(value.dtype), value, preferred_element_type=scores.dtype)
    values = running.values * jnp.moveaxis(kept, 2, 0)[..., None] + new
    return _Running(largest, running.total * kept + weights.sum(axis=-1), values)


def _finish(running: _Running) -> tuple[Float[Array, "L G R K"], Float[Array, "G R L"]]:
    total = jnp.where(running.total == 0, 1, running.total)
    return running.values / jnp.moveaxis(total, 2, 0)[..., None], running.largest + jnp.log(total)


def _tile_gradients(query, key, value, rows: _Rows, ids, places, length, log_sum, projection, gradient):
    scores, mask = _scores(query, key, rows, ids, places, length)
    wide, narrow = scores.dtype, query.dtype
    log_sum, projection = jnp.moveaxis(log_sum, 0, 2), jnp.moveaxis(projection, 0, 2)
    weights = _weights(scores, log_sum, mask)
    of_weights = jnp.einsum("sgrk,tgk->grst", gradient, value, preferred_element_type=wide)
    of_scores = (weights * (of_weights - projection[..., None]) * query.shape[-1] ** -0.5).astype(narrow)
    return (
        jnp.einsum("grst,tgk->sgrk", of_scores, key, preferred_element_type=wide),
        jnp.einsum("grst,sgrk->tgk", of_scores, query, preferred_element_type=wide),
        jnp.einsum("grst,sgrk->tgk", weights.astype(narrow), gradient, preferred_element_type=wide),
    )


def _scores(query: Float[Array, "L G R K"], key: Float[Array, "M G K"], rows: _Rows, ids, places, length: int | None):
    """(scores [G, R, L, M], the mask of what is seen or None)."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("sgrk,tgk->grst", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    mask = seen(rows.last, rows.segments, ids, places)
    if length is not None:
        inside = places < length
        mask = inside if mask is None else mask & inside
    return (scores, None) if mask is None else (jnp.where(mask, scores, jnp.finfo(wide).min), mask)


def _weights(scores, log_sum, mask):
    weights = jnp.exp(scores - log_sum[..., None])
    # Where a query sees nothing, all its scores are the least number, and so is the largest of them.
    return weights if mask is None else jnp.where(mask, weights, 0)


# ── blocks ───────────────────────────────────────────────────────────────────────────────────────────


def _blocks(tree, block: int):
    """[S, ...] as [Q, L, ...], filled up with zeros."""
    padded = lambda x: jnp.pad(x, ((0, -x.shape[0] % block), *[(0, 0)] * (x.ndim - 1)))  # noqa: E731
    return jax.tree.map(lambda x: padded(x).reshape(-1, block, *x.shape[1:]), tree)


def _at(tree, index):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), tree)
