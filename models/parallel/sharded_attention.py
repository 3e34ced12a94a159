"""Attention by the kernel that the layout in force, the dtype and the devices ask for.

Where the layout splits the sequence, keys and values travel between devices (`hetjax.models.parallel.ring_attention`).
Else each device attends with its own samples and heads, without an array of all scores: by cuDNN's kernel where it
takes them (`hetjax.models.kernels.fused_attention`); with segments or a cache by Triton kernels on NVIDIA devices
(`hetjax.models.kernels.triton_attention`) and by blocks of plain operations on others
(`hetjax.models.kernels.blocked_attention`). Where all scores are no more than a block's, and for the one query of a
decode step, plain operations take them at once (`hetjax.models.kernels.attention`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from hetjax.models.kernels.attention import attend
from hetjax.models.kernels.attention_mask import Visible, causal
from hetjax.models.kernels.attention_scores import attention_scopes
from hetjax.models.kernels.blocked_attention import is_one_block
from hetjax.models.kernels.checks import CUDNN_ATTENTION, TRITON_ATTENTION
from hetjax.models.kernels.flash_attention import BLOCKED, TileKernel, flash_attention
from hetjax.models.kernels.fused_attention import compute_capability, fused_attention, is_fusable
from hetjax.models.kernels.triton_attention import TRITON, is_supported
from hetjax.models.parallel.layout_in_force import NO_DEVICE, device_in_force, is_replaced, splits_in_force
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
    device = device_in_force()
    kernel = tile_kernel(query, device)
    if sequence_shards() > 1:
        if positions is not None:
            return attend(query, key, value, positions, segments)
        return ring_attention(splits_in_force(), query, key, value, segments, causal=order is not None, kernel=kernel)
    if positions is segments is None and is_fusable(query, device) and not is_replaced(CUDNN_ATTENTION):
        return _per_device(partial(_fused, causal=order is not None), query, key, value, None, None)
    if order is not None:
        positions = causal(order.length)
    with attention_scopes(causal=order is not None, packed=segments is not None):
        if device is NO_DEVICE:
            # As one equation, so that whoever counts its products finds queries and keys.
            return jax.jit(attend)(query, key, value, positions, segments)
        if _fits_in_the_open(query, key, kernel):
            return attend(query, key, value, positions, segments)
        return _per_device(partial(_flash, kernel), query, key, value, positions, segments)


def tile_kernel(query: Float[Array, "B S H K"], device: jax.Device) -> TileKernel:
    """Return what computes attention tile by tile on devices like this one: Triton kernels or plain operations."""
    supported = is_supported(query.dtype, query.shape[-1], compute_capability(device))
    return TRITON if supported and not is_replaced(TRITON_ATTENTION) else BLOCKED


def _fits_in_the_open(query: Array, key: Array, kernel: TileKernel) -> bool:
    """Whether the scores may all be there at once: those of one block, or of one query a sample, as in decoding."""
    queries, keys = query.shape[1], key.shape[1]
    return queries == 1 or (kernel is BLOCKED and is_one_block(queries, keys))


def _fused(query, key, value, positions, segments, *, causal: bool):
    return fused_attention(query, key, value, causal=causal)


def _flash(kernel: TileKernel, query, key, value, positions, segments):
    return flash_attention(kernel, query, key, value, Visible(positions, segments, segments))


def _per_device(
    function: Callable[..., Array],
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    positions: Int[Array, "#B S"] | None,
    segments: Int[Array, "B S"] | None,
) -> Float[Array, "B S H K"]:
    """Run a kernel on each device for its own samples and heads.

    Inside `jax.shard_map`, so that nothing about it is left to the partitioner.
    """
    splits = splits_in_force()
    if splits is None:
        return function(query, key, value, positions, segments)
    batch, heads = splits.axes_of("batch") or None, splits.axes_of("heads") or None
    of_heads = PartitionSpec(batch, None, heads)
    of_positions = PartitionSpec(None if positions is None or positions.shape[0] == 1 else batch)
    return jax.shard_map(
        function,
        mesh=splits.mesh,
        in_specs=(of_heads, of_heads, of_heads, of_positions, PartitionSpec(batch)),
        out_specs=of_heads,
        check_vma=False,  # as in `hetjax.models.parallel.ring_attention`
    )(query, key, value, positions, segments)
