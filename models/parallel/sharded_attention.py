"""Attention by the kernel that the layout in force, the dtype and the devices ask for.

Where the layout splits the sequence, keys and values travel between devices (`hetjax.models.parallel.ring_attention`).
Else each device attends with its own samples and heads: by a fused kernel where it has one that takes them
(`hetjax.models.kernels.fused_attention`), else, and with every cache, by plain operations
(`hetjax.models.kernels.attention`).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from hetjax.models.kernels.attention import attend
from hetjax.models.kernels.fused_attention import fused_attention, is_fusable
from hetjax.models.parallel.layout_in_force import device_in_force, splits_in_force
from hetjax.models.parallel.ring_attention import ring_attention
from hetjax.models.parallel.zigzag_order import SequenceOrder, check_order, sequence_shards

# B batch · S queries · T keys, or slots of a cache · H heads · G groups of heads that share a key · K head width


def sharded_attention(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    *,
    positions: Int[Array, "#B S"] | None = None,
    order: SequenceOrder | None = None,
    segments: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H K"]:
    """Return softmax(query · key / sqrt(K)) · value, as `hetjax.models.kernels.attention.attend` computes it.

    Causal with `order`, that of the sequence in training, or with `positions`, those of queries among cached keys;
    else every query sees all keys. Raises LayoutError where the order is not that of the layout in force.
    """
    if order is not None:
        check_order(order, owner="Attention")
    if positions is None and sequence_shards() > 1:
        return ring_attention(splits_in_force(), query, key, value, segments, causal=order is not None)
    if positions is None and is_fusable(query, segments, device_in_force()):
        return fused_attention_per_device(query, key, value, segments, causal=order is not None)
    if order is not None:
        positions = jnp.asarray(order.positions)[None]
    return attend(query, key, value, positions, segments)


def fused_attention_per_device(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    segments: Int[Array, "B S"] | None,
    *,
    causal: bool,
) -> Float[Array, "B S H K"]:
    """Return `fused_attention`, where each device runs the kernel for its own samples and heads.

    Inside `jax.shard_map`, so that nothing about the kernel is left to the partitioner.
    """
    run = partial(fused_attention, causal=causal)
    splits = splits_in_force()
    if splits is None:
        return run(query, key, value, segments)
    batch, heads = splits.axes_of("batch") or None, splits.axes_of("heads") or None
    of_heads = PartitionSpec(batch, None, heads)
    return jax.shard_map(
        run,
        mesh=splits.mesh,
        in_specs=(of_heads, of_heads, of_heads, PartitionSpec(batch)),
        out_specs=of_heads,
        check_vma=False,  # as in `hetjax.models.parallel.ring_attention`
    )(query, key, value, segments)
