"""Triton kernels of attention, written in Pallas: what a program computes for a block of queries or of keys.

After FlashAttention-2 (Dao 2023): a program loops over the blocks of the other kind between bounds of its own.
`hetjax.models.kernels.triton_attention` calls them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from hetjax.models.kernels.attention_mask import seen

# L queries and M keys of a block · K head width, filled up to a power of two

_LOG2_E = math.log2(math.e)
_LEAST = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The score of a key that is not seen; far from the least number, so that differences stay finite."""


class Blocks(NamedTuple):
    """Queries and keys of a block, the warps of a program, and the loads that run ahead in its loop."""

    queries: int
    keys: int
    warps: int
    stages: int


class Shape(NamedTuple):
    """The static facts of a call."""

    queries: int
    keys: int
    width: int
    share: int
    blocks: Blocks

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return self.width**-0.5

    @property
    def padded_width(self) -> int:
        """A power of two, as Triton wants it."""
        return max(16, pl.next_power_of_2(self.width))


class Inputs(NamedTuple):
    """What every kernel is given: of one sample, and of one head or the heads of one group.

    `first` and `stop` say from which block of the other kind to which one each block goes.
    """

    first: jax.Array
    stop: jax.Array
    last: jax.Array | None
    query_segments: jax.Array | None
    key_segments: jax.Array | None
    query: jax.Array
    key: jax.Array
    value: jax.Array


def forward_kernel(shape: Shape, inputs: Inputs, _, before, output, log_sum) -> None:
    """Attend with a block of queries of one head, going on from attention and log-sum-exp `before`."""
    block = pl.program_id(0)
    rows, query = _queries(shape, inputs, block)
    where, inside = _at(block, shape.blocks.queries), _mask_of(shape, rows.inside)

    def of_keys(number, running):
        values, largest, total = running
        places, ids, key, value = _keys(shape, inputs, number)
        scores, mask = _scores(shape, query, key, rows, ids, places)
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights = _weights(scores, new_largest, mask)
        kept = jnp.exp2(largest - new_largest)
        values = values * kept[:, None] + triton.dot(weights.astype(value.dtype), value)
        return values, new_largest, total * kept + jnp.sum(weights, axis=1)

    if before is None:
        largest = jnp.full((shape.blocks.queries,), _LEAST, jnp.float32)
        running = jnp.zeros((shape.blocks.queries, shape.padded_width), jnp.float32), largest, jnp.zeros_like(largest)
    else:
        largest = triton.load(before[1].at[where], mask=rows.inside, other=0.0) * _LOG2_E
        running = _load(before[0], where, None, inside), largest, jnp.ones_like(largest)
    values, largest, total = jax.lax.fori_loop(inputs.first[block], inputs.stop[block], of_keys, running)
    total = jnp.where(total == 0, 1.0, total)
    _store(output.at[where, :], values / total[:, None], inside)
    triton.store(log_sum.at[where], (largest + jnp.log2(total)) / _LOG2_E, mask=rows.inside)


def query_gradient_kernel(shape: Shape, inputs: Inputs, of_output, before, d_query) -> None:
    """Compute the gradient of a block of queries of one head, added to the one `before`."""
    block = pl.program_id(0)
    rows, query = _queries(shape, inputs, block)
    gradient, log_sum, projection = _of_output(shape, of_output, block, rows.inside)

    def of_keys(number, total):
        places, ids, key, value = _keys(shape, inputs, number)
        scores, mask = _scores(shape, query, key, rows, ids, places)
        weights = _weights(scores, log_sum, mask)
        of_scores = weights * (triton.dot(gradient, value, trans_b=True) - projection[:, None])
        return total + triton.dot(of_scores.astype(key.dtype), key)

    total = jnp.zeros((shape.blocks.queries, shape.padded_width), jnp.float32)
    total = jax.lax.fori_loop(inputs.first[block], inputs.stop[block], of_keys, total)
    where, inside = _at(block, shape.blocks.queries), _mask_of(shape, rows.inside)
    total = total * shape.scale
    _store(d_query.at[where, :], total if before is None else total + _load(before[0], where, None, inside), inside)


def key_gradient_kernel(shape: Shape, inputs: Inputs, of_output, before, d_key, d_value) -> None:
    """Compute the gradients of a block of keys and values from all heads of their group, added to those `before`."""
    block = pl.program_id(0)
    places, ids, key, value = _keys(shape, inputs, block)

    def of_head(head, totals):
        def of_queries(number, totals):
            of_key, of_value = totals
            rows, query = _queries(shape, inputs, number, head)
            gradient, log_sum, projection = _of_output(shape, of_output, number, rows.inside, head)
            scores, mask = _scores(shape, query, key, rows, ids, places)
            weights = _weights(scores, log_sum, mask)
            of_scores = weights * (triton.dot(gradient, value, trans_b=True) - projection[:, None])
            return (
                of_key + triton.dot(of_scores.astype(query.dtype), query, trans_a=True),
                of_value + triton.dot(weights.astype(gradient.dtype), gradient, trans_a=True),
            )

        return jax.lax.fori_loop(inputs.first[block], inputs.stop[block], of_queries, totals)

    zero = jnp.zeros((shape.blocks.keys, shape.padded_width), jnp.float32)
    of_key, of_value = jax.lax.fori_loop(0, shape.share, of_head, (zero, zero))
    where, inside = _at(block, shape.blocks.keys), _mask_of(shape, places < shape.keys)
    of_key = of_key * shape.scale
    if before is not None:
        of_key, of_value = (
            x + _load(ref, where, None, inside) for x, ref in zip((of_key, of_value), before, strict=True)
        )
    _store(d_key.at[where, :], of_key, inside)
    _store(d_value.at[where, :], of_value, inside)


# ── parts of kernels ─────────────────────────────────────────────────────────────────────────────────


class _Rows(NamedTuple):
    """A block of queries: whether each is one, the last key that it sees, its segment."""

    inside: Bool[Array, " L"]
    last: Int[Array, " L"] | None
    segments: Int[Array, " L"] | None


def _queries(shape: Shape, inputs: Inputs, block, head=None) -> tuple[_Rows, Float[Array, "L K"]]:
    where = _at(block, shape.blocks.queries)
    inside = block * shape.blocks.queries + jnp.arange(shape.blocks.queries) < shape.queries
    ids = lambda ref: None if ref is None else triton.load(ref.at[where], mask=inside, other=-1)  # noqa: E731
    query = _load(inputs.query, where, head, _mask_of(shape, inside))
    return _Rows(inside, ids(inputs.last), ids(inputs.query_segments)), query


def _keys(shape: Shape, inputs: Inputs, block):
    """(positions, segments, keys, values) of a block."""
    where = _at(block, shape.blocks.keys)
    places = block * shape.blocks.keys + jnp.arange(shape.blocks.keys)
    mask = _mask_of(shape, places < shape.keys)
    ids = inputs.key_segments
    ids = None if ids is None else triton.load(ids.at[where], mask=places < shape.keys, other=-1)
    return places, ids, _load(inputs.key, where, None, mask), _load(inputs.value, where, None, mask)


def _of_output(shape: Shape, of_output, block, inside, head=None):
    """(gradient, log-sum-exp to the base of 2, projection) of a block of queries; no weight is left behind the end."""
    gradient, log_sum, projection = of_output
    where = _at(block, shape.blocks.queries)
    index = (where,) if head is None else (head, where)
    log_sum = triton.load(log_sum.at[index], mask=inside, other=-_LEAST)
    projection = triton.load(projection.at[index], mask=inside, other=0.0)
    return _load(gradient, where, head, _mask_of(shape, inside)), log_sum * _LOG2_E, projection


def _scores(shape: Shape, query, key, rows: _Rows, ids, places):
    """(scores to the base of 2, what is seen or None)."""
    scores = triton.dot(query, key, trans_b=True) * (shape.scale * _LOG2_E)
    mask = seen(rows.last, rows.segments, ids, places)
    if shape.keys % shape.blocks.keys:
        inside = (places < shape.keys)[None]
        mask = jnp.broadcast_to(inside, scores.shape) if mask is None else mask & inside
    return (scores, None) if mask is None else (jnp.where(mask, scores, _LEAST), mask)


def _weights(scores, log_sum, mask):
    weights = jnp.exp2(scores - log_sum[:, None])
    return weights if mask is None else jnp.where(mask, weights, 0.0)


def _at(block, size: int):
    return pl.ds(block * size, size)


def _mask_of(shape: Shape, inside: Bool[Array, " L"]) -> Bool[Array, "L K"]:
    return inside[:, None] & (jnp.arange(shape.padded_width) < shape.width)[None]


def _load(ref, where, head, mask) -> Float[Array, "L K"]:
    return triton.load(ref.at[where, :] if head is None else ref.at[where, head, :], mask=mask, other=0.0)


def _store(ref, x, mask) -> None:
    triton.store(ref, x.astype(ref.dtype), mask=mask)
