"""Triton kernels of attention, written in Pallas: what a program computes for a block of queries or of keys.

After FlashAttention-2 (Dao 2023): a program loops over the blocks of the other kind between bounds of its own.
`hetjax.models.kernels.triton_attention` calls them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from hetjax.models.kernels.attention_mask import seen

# L queries and M keys of a block · K channels of a part of the heads (`Shape.parts`)

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
        """The least multiple of 16, which is the least that Triton multiplies."""
        return -(-self.width // 16) * 16

    @property
    def parts(self) -> tuple[slice, ...]:
        """The channels in parts of a power of two, since Triton has no arrays of other lengths: 80 are 64 and 16."""
        sizes = [1 << bit for bit in reversed(range(self.padded_width.bit_length())) if self.padded_width >> bit & 1]
        starts = itertools.accumulate(sizes, initial=0)
        return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=False))


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
    where = _at(block, shape.blocks.queries)

    def of_keys(number, running):
        values, largest, total = running
        places, ids, key, value = _keys(shape, inputs, number)
        scores, mask = _scores(shape, query, key, rows, ids, places)
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights = _weights(scores, new_largest, mask)
        kept = jnp.exp2(largest - new_largest)
        weights_16 = weights.astype(value[0].dtype)
        values = tuple(x * kept[:, None] + triton.dot(weights_16, part) for x, part in zip(values, value, strict=True))
        return values, new_largest, total * kept + jnp.sum(weights, axis=1)

    if before is None:
        largest = jnp.full((shape.blocks.queries,), _LEAST, jnp.float32)
        running = _zeros(shape, shape.blocks.queries), largest, jnp.zeros_like(largest)
    else:
        largest = _load_rows(before[1], where, rows.inside, 0.0) * _LOG2_E
        running = _load(shape, before[0], where, None, rows.inside), largest, jnp.ones_like(largest)
    values, largest, total = jax.lax.fori_loop(inputs.first[block], inputs.stop[block], of_keys, running)
    total = jnp.where(total == 0, 1.0, total)
    _store(shape, output, where, (x / total[:, None] for x in values), rows.inside)
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
        of_scores = (weights * (_product(gradient, value) - projection[:, None])).astype(key[0].dtype)
        return tuple(x + triton.dot(of_scores, part) for x, part in zip(total, key, strict=True))

    total = _zeros(shape, shape.blocks.queries)
    total = jax.lax.fori_loop(inputs.first[block], inputs.stop[block], of_keys, total)
    where = _at(block, shape.blocks.queries)
    total = tuple(x * shape.scale for x in total)
    if before is not None:
        total = _sum(total, _load(shape, before[0], where, None, rows.inside))
    _store(shape, d_query, where, total, rows.inside)


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
            of_scores = weights * (_product(gradient, value) - projection[:, None])
            return _add_transposed(of_key, of_scores, query), _add_transposed(of_value, weights, gradient)

        return jax.lax.fori_loop(inputs.first[block], inputs.stop[block], of_queries, totals)

    zeros = _zeros(shape, shape.blocks.keys)
    of_key, of_value = jax.lax.fori_loop(0, shape.share, of_head, (zeros, zeros))
    where, inside = _at(block, shape.blocks.keys), _inside(places, shape.keys, shape.blocks.keys)
    of_key = tuple(x * shape.scale for x in of_key)
    if before is not None:
        of_key, of_value = (
            _sum(x, _load(shape, ref, where, None, inside)) for x, ref in zip((of_key, of_value), before, strict=True)
        )
    _store(shape, d_key, where, of_key, inside)
    _store(shape, d_value, where, of_value, inside)


# ── parts of kernels ─────────────────────────────────────────────────────────────────────────────────

_Parts = tuple[Float[Array, "L K"], ...]
"""A block of heads, in the parts of `Shape.parts`."""


class _Rows(NamedTuple):
    """A block of queries: whether each is one (None: all are), the last key that it sees, its segment."""

    inside: Bool[Array, " L"] | None
    last: Int[Array, " L"] | None
    segments: Int[Array, " L"] | None


def _queries(shape: Shape, inputs: Inputs, block, head=None) -> tuple[_Rows, _Parts]:
    where = _at(block, shape.blocks.queries)
    places = block * shape.blocks.queries + jnp.arange(shape.blocks.queries)
    inside = _inside(places, shape.queries, shape.blocks.queries)
    ids = lambda ref: None if ref is None else _load_rows(ref, where, inside, -1)  # noqa: E731
    query = _load(shape, inputs.query, where, head, inside)
    return _Rows(inside, ids(inputs.last), ids(inputs.query_segments)), query


def _keys(shape: Shape, inputs: Inputs, block):
    """(positions, segments, keys, values) of a block."""
    where = _at(block, shape.blocks.keys)
    places = block * shape.blocks.keys + jnp.arange(shape.blocks.keys)
    inside = _inside(places, shape.keys, shape.blocks.keys)
    ids = None if inputs.key_segments is None else _load_rows(inputs.key_segments, where, inside, -1)
    return places, ids, *(_load(shape, ref, where, None, inside) for ref in (inputs.key, inputs.value))


def _of_output(shape: Shape, of_output, block, inside, head=None):
    """(gradient, log-sum-exp to the base of 2, projection) of a block of queries; no weight is left behind the end."""
    gradient, log_sum, projection = of_output
    where = _at(block, shape.blocks.queries)
    index = where if head is None else (head, where)
    log_sum = _load_rows(log_sum, index, inside, -_LEAST)
    return (
        _load(shape, gradient, where, head, inside),
        log_sum * _LOG2_E,
        _load_rows(projection, index, inside, 0.0),
    )


def _scores(shape: Shape, query: _Parts, key: _Parts, rows: _Rows, ids, places):
    """(scores to the base of 2, what is seen or None)."""
    scores = _product(query, key) * (shape.scale * _LOG2_E)
    mask = seen(rows.last, rows.segments, ids, places)
    inside = _inside(places, shape.keys, shape.blocks.keys)
    if inside is not None:
        mask = jnp.broadcast_to(inside[None], scores.shape) if mask is None else mask & inside[None]
    return (scores, None) if mask is None else (jnp.where(mask, scores, _LEAST), mask)


def _weights(scores, log_sum, mask):
    weights = jnp.exp2(scores - log_sum[:, None])
    return weights if mask is None else jnp.where(mask, weights, 0.0)


def _product(left: _Parts, right: _Parts) -> Float[Array, "L M"]:
    """The products of all channels of two blocks of heads."""
    first, *more = (triton.dot(a, b, trans_b=True) for a, b in zip(left, right, strict=True))
    return sum(more, first)


def _add_transposed(total: _Parts, of_scores: Float[Array, "L M"], rows: _Parts) -> _Parts:
    """Each key's sum over the queries of a block, weighted by numbers of the scores, added to a total."""
    narrow = of_scores.astype(rows[0].dtype)
    return tuple(x + triton.dot(narrow, part, trans_a=True) for x, part in zip(total, rows, strict=True))


def _sum(left: _Parts, right: _Parts) -> _Parts:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _zeros(shape: Shape, rows: int) -> _Parts:
    return tuple(jnp.zeros((rows, part.stop - part.start), jnp.float32) for part in shape.parts)


def _at(block, size: int):
    return pl.ds(block * size, size)


def _inside(places: Int[Array, " L"], length: int, block: int) -> Bool[Array, " L"] | None:
    """Which positions of a block there are; None where blocks divide the length."""
    return places < length if length % block else None


def _load_rows(ref, index, inside, other):
    return triton.load(ref.at[index]) if inside is None else triton.load(ref.at[index], mask=inside, other=other)


def _load(shape: Shape, ref, where, head, inside) -> _Parts:
    loaded = []
    for part in shape.parts:
        at = ref.at[where, _channels(part)] if head is None else ref.at[where, head, _channels(part)]
        mask = _mask_of(shape, part, inside)
        loaded.append(triton.load(at) if mask is None else triton.load(at, mask=mask, other=0.0))
    return tuple(loaded)


def _store(shape: Shape, ref, where, parts: Iterable[Float[Array, "L K"]], inside) -> None:
    for part, x in zip(shape.parts, parts, strict=True):
        triton.store(ref.at[where, _channels(part)], x.astype(ref.dtype), mask=_mask_of(shape, part, inside))


def _channels(part: slice):
    return pl.ds(part.start, part.stop - part.start)


def _mask_of(shape: Shape, part: slice, inside: Bool[Array, " L"] | None) -> Bool[Array, "L K"] | None:
    """What there is of a part: None where all is."""
    if part.stop <= shape.width:
        return None if inside is None else inside[:, None]
    channels = (part.start + jnp.arange(part.stop - part.start) < shape.width)[None]
    return channels if inside is None else inside[:, None] & channels
