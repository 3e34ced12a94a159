"""Attend over a sequence that several devices share: keys and values travel, queries stay.

Each device keeps its queries. In the *ring* form (Liu et al. 2023, ring attention) keys and values
move on to the next device once a round, so that after c - 1 moves every device has seen those of all c; each
move is asked for before the tiles of the round are computed, which hides it. In the *all-gather*
form they are gathered first. Both compute the same tiles in the same order; `hetjax.models.parallel.ring_exchange`
has the bytes of each.

A tile is computed by a kernel that makes no array of scores (`hetjax.models.kernels.flash_attention`) and goes on from
what the tiles before it gave: by their log-sum-exp, or adding gradients up. The backward pass keeps queries, keys,
values, the output and the whole log-sum-exp of a query; the scores are computed again while keys, values and their
gradients travel. No weight and no activation moves else.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from hetjax.models.errors import LayoutError
from hetjax.models.kernels.attention_mask import Visible, causal
from hetjax.models.kernels.attention_scores import attention_scopes
from hetjax.models.kernels.flash_attention import BLOCKED, TileKernel, projection_of
from hetjax.models.kernels.partial_attention import nothing_seen
from hetjax.models.parallel.layout_in_force import Splits
from hetjax.models.parallel.ring_exchange import CollectedGradients, RingSharding, rounds
from hetjax.models.parallel.zigzag_order import tiles_of_round

# B batch · S sequence · H heads · G groups of heads that share a key · K head width
# Inside `shard_map` these are the parts of one device: C halves of L positions make its part of S.

Arrays = TypeVar("Arrays", bound=PyTree[Array])
"""A tree of one device's arrays [B, C, ...]."""


def ring_attention(
    splits: Splits,
    query: Float[Array, "B S H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    segments: Int[Array, "B S"] | None = None,
    *,
    causal: bool,
    kernel: TileKernel = BLOCKED,
) -> Float[Array, "B S H K"]:
    """Compute `hetjax.models.kernels.attention.attend` with the sequence split as `splits` says.

    Causal positions are in zigzag order (`hetjax.models.parallel.zigzag_order`). With `segments`, a query sees the keys
    of its own segment only. Raises LayoutError where the key heads do not divide as the heads are split.
    """
    sharding = RingSharding(
        mesh=splits.mesh,
        batch=splits.axes_of("batch"),
        seq=splits.axes_of("seq"),
        heads=splits.axes_of("heads"),
        causal=causal,
        gather=splits.context_attention == "all_gather",
        kernel=kernel,
    )
    parts, kv_heads = math.prod(sharding.mesh.shape[axis] for axis in sharding.heads), key.shape[2]
    if kv_heads % parts:
        raise LayoutError(
            f"attention over a split sequence needs kv_heads % {'*'.join(sharding.heads)} = 0, but {kv_heads} % "
            f"{parts} = {kv_heads % parts}; change either of the two"
        )
    return _attend(sharding, query, key, value, segments)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sharding: RingSharding, query, key, value, segments):
    return _forward(sharding, query, key, value, segments)[0]


def _forward(sharding: RingSharding, query, key, value, segments):
    output, log_sum = jax.shard_map(
        partial(_forward_part, sharding),
        mesh=sharding.mesh,
        in_specs=(*[sharding.of_heads] * 3, sharding.of_tokens),
        out_specs=(sharding.of_heads, sharding.of_heads),
        check_vma=False,  # under a `jax.vmap` over another axis of the mesh the check finds that axis, too
    )(query, key, value, segments)
    return output, (query, key, value, segments, output, log_sum)


def _backward(sharding: RingSharding, residuals, gradient):
    gradients = jax.shard_map(
        partial(_backward_part, sharding),
        mesh=sharding.mesh,
        in_specs=(*[sharding.of_heads] * 3, sharding.of_tokens, *[sharding.of_heads] * 3),
        out_specs=(*[sharding.of_heads] * 3,),
        check_vma=False,
    )(*residuals, gradient)
    return (*gradients, None)


_attend.defvjp(_forward, _backward)


# ── the part of one device ───────────────────────────────────────────────────────────────────────────


def _forward_part(sharding: RingSharding, query, key, value, segments):
    """(output [B, S, H, K], log-sum-exp [B, C, H, L])."""
    dtype = query.dtype
    query, key, value, segments, index = _local(sharding, query, key, value, segments)
    running = jax.vmap(nothing_seen, in_axes=1, out_axes=1)(query)
    for number, held in rounds(sharding, index, (key, value, segments)):
        for queries, keys, triangular in tiles_of_round(index, number, sharding.shards, causal=sharding.causal):
            key_half, value_half, key_segments = _half(held, keys)
            query_half, query_segments = _half((query, segments), queries)
            visible = _visible(query_half.shape[1], triangular, query_segments, key_segments)
            tile = query_half, key_half, value_half, visible
            with attention_scopes(causal=triangular, packed=segments is not None):
                new = sharding.kernel.forward(*tile, running.values.dtype, _half(running, queries))
            running = _put(running, new, queries)
    return _merged(running.values).astype(dtype), running.log_sum


def _backward_part(sharding: RingSharding, query, key, value, segments, output, log_sum, gradient):
    """Gradients of query, key and value."""
    dtypes, wide = (query.dtype, key.dtype, value.dtype), log_sum.dtype
    output, gradient = (_halves(sharding, x) for x in (output, gradient))
    query, key, value, segments, index = _local(sharding, query, key, value, segments)
    projection = jax.vmap(projection_of, in_axes=1, out_axes=1)(gradient, output)
    of_query = jnp.zeros(query.shape, wide)
    collected = CollectedGradients(sharding, index)
    for number, held in rounds(sharding, index, (key, value, segments)):
        of_held = jnp.zeros(key.shape, wide), jnp.zeros(value.shape, wide)
        for queries, keys, triangular in tiles_of_round(index, number, sharding.shards, causal=sharding.causal):
            key_half, value_half, key_segments = _half(held, keys)
            query_half, query_segments, *of_output = _half((query, segments, log_sum, projection, gradient), queries)
            visible = _visible(query_half.shape[1], triangular, query_segments, key_segments)
            before = _half(of_query, queries), *_half(of_held, keys)
            tile = query_half, key_half, value_half, visible
            with attention_scopes(causal=triangular, packed=segments is not None):
                d_query, *d_held = sharding.kernel.backward(*tile, *of_output, wide, before)
            of_query, of_held = _put(of_query, d_query, queries), _put(of_held, tuple(d_held), keys)
        collected.add(number, of_held)
    of_key, of_value = collected.own()
    return tuple(_merged(x).astype(dtype) for x, dtype in zip((of_query, of_key, of_value), dtypes, strict=True))


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────


def _local(sharding: RingSharding, query, key, value, segments):
    """(query [B C L H K], key and value [B C L G K], segments [B C L] or None, this device's place in the ring)."""
    index = jax.lax.axis_index(sharding.seq)
    return *(jax.tree.map(partial(_halves, sharding), x) for x in (query, key, value, segments)), index


def _halves(sharding: RingSharding, x: Array) -> Array:
    """[B, S, ...] as [B, C, L, ...]: the early and the late chunk of causal positions, or all positions as one."""
    return x.reshape(x.shape[0], 2 if sharding.causal else 1, -1, *x.shape[2:])


def _merged(x: Array) -> Array:
    """[B, C, L, ...] as [B, S, ...]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _half(tree: Arrays, which: int | Int[Array, ""]) -> Arrays:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, which, axis=1, keepdims=False), tree)


def _put(all: Arrays, half: Arrays, which: int | Int[Array, ""]) -> Arrays:
    put = lambda all, half: jax.lax.dynamic_update_index_in_dim(all, half, which, axis=1)  # noqa: E731
    # Behind a barrier: XLA would keep the halves of all tiles, and find each time the latest of them.
    return jax.lax.optimization_barrier(jax.tree.map(put, all, half))


def _visible(length: int, triangular: bool, query_segments, key_segments) -> Visible:
    return Visible(causal(length) if triangular else None, query_segments, key_segments)
