"""Attention by Triton kernels: segments, causal or other limits, grouped queries, any lengths.

For bfloat16 and float16 on NVIDIA devices, where cuDNN's kernel would take segments as a bias of [heads, S, S], and
where attention goes on from what it was over other keys. Each block of queries or keys has bounds of its own, so that
segments and limits save work as well as memory. Grouped queries read the keys of their group, and add up its gradients,
without a copy for each head.

The backward does seven products a tile, three for queries and four for keys, where five would do if both shared the
gradient of the scores. Programs could pass it on by atomic additions, whose order is not the same twice, or through
memory: 4 bytes a score in bfloat16, written and read, for 4 K FLOPs saved. At the 3.35 TB/s of an H100, and 400 TFLOP/s
taken for such kernels, those are 1.2 ps against 0.8 ps at K = 80 and 1.3 ps at 128: nothing is won, but memory taken.

`jax.experimental.pallas` is experimental: this file and `hetjax.models.kernels.triton_kernels` alone use its Triton
lowering. JAX's own kernel (`jax.experimental.pallas.ops.gpu.attention`) visits all blocks, wants as many heads of keys
as of queries, lengths that divide and the same segments for both, and its backward takes no log-sum-exp of more keys
than it has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from hetjax.models.kernels.attention_mask import Visible, block_overlaps, bounds
from hetjax.models.kernels.blocked_attention import Gradients
from hetjax.models.kernels.flash_attention import TileKernel
from hetjax.models.kernels.partial_attention import PartialAttention
from hetjax.models.kernels.triton_kernels import (
    Blocks,
    Inputs,
    Shape,
    forward_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)

# B batch · S queries · T keys · H heads · G groups of heads that share a key · K head width


def is_supported(dtype: jax.typing.DTypeLike, width: int, capability: tuple[int, ...]) -> bool:
    """Return whether the kernels take heads of a dtype and width on NVIDIA devices of a compute capability."""
    return capability >= (8, 0) and dtype in (jnp.bfloat16, jnp.float16) and width <= 256


def forward_blocks(width: int) -> Blocks:
    """Return the blocks of the forward for heads of a width."""
    return Blocks(64, 32, 4, 2) if width > 128 else Blocks(128, 64, 4 if width <= 64 else 8, 2)


def backward_blocks(width: int) -> Blocks:
    """Return the blocks of both gradients for heads of a width."""
    return Blocks(32, 32, 4, 2) if width > 128 else Blocks(64, 64, 4 if width <= 64 else 8, 2)


def _forward(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    visible: Visible,
    dtype: jax.typing.DTypeLike,
    before: PartialAttention | None = None,
    *,
    interpret: bool,
) -> PartialAttention:
    batch, queries, heads, width = query.shape
    call = _Call(query, key, value, visible, forward_blocks(width), by_keys=False, interpret=interpret)
    shapes = jax.ShapeDtypeStruct(query.shape, dtype), jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)
    return PartialAttention(*call(forward_kernel, "attention_forward", (), before, shapes))


def _backward(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    visible: Visible,
    log_sum: Float[Array, "B H S"],
    projection: Float[Array, "B H S"],
    gradient: Float[Array, "B S H K"],
    dtype: jax.typing.DTypeLike,
    before: Gradients | None = None,
    *,
    interpret: bool,
) -> Gradients:
    blocks = backward_blocks(query.shape[-1])
    like = lambda x: jax.ShapeDtypeStruct(x.shape, dtype)  # noqa: E731
    of_queries = gradient, log_sum, projection
    inputs = query, key, value, visible, blocks
    (d_query,) = _Call(*inputs, by_keys=False, interpret=interpret)(
        query_gradient_kernel, "attention_query_gradient", of_queries, before and before[:1], (like(query),)
    )
    d_key, d_value = _Call(*inputs, by_keys=True, interpret=interpret)(
        key_gradient_kernel, "attention_key_gradient", of_queries, before and before[1:], (like(key), like(value))
    )
    return d_query, d_key, d_value


class _Call:
    """A call of a kernel, whose programs are the blocks of queries of each head, or those of keys of each group."""

    def __init__(self, query, key, value, visible: Visible, blocks: Blocks, *, by_keys: bool, interpret: bool):
        self.batch, queries, self.heads, width = query.shape
        self.groups = key.shape[2]
        self.shape = Shape(queries, key.shape[1], width, self.heads // self.groups, blocks)
        self.by_keys, self.interpret = by_keys, interpret
        overlaps = block_overlaps(visible, queries, key.shape[1], blocks.queries, blocks.keys)
        ends = bounds(overlaps.swapaxes(1, 2) if by_keys else overlaps)
        self.inputs = Inputs(*ends, *visible, query, key, value)

    def __call__(
        self,
        kernel: Callable[..., None],
        name: str,
        of_queries: tuple[Array, ...],
        before: tuple[Array, ...] | None,
        outputs: tuple[jax.ShapeDtypeStruct, ...],
    ) -> tuple[Array, ...]:
        """Run it, with further arrays of the queries and what its outputs begin with."""
        blocks = self.shape.blocks
        count, parts = (self.shape.keys, self.groups) if self.by_keys else (self.shape.queries, self.heads)
        block = blocks.keys if self.by_keys else blocks.queries
        of_keys = {"key_segments", "key", "value"}
        specs = {name: self._spec(x, name in of_keys) for name, x in self.inputs._asdict().items()}
        call = pl.pallas_call(
            partial(kernel, self.shape),
            grid=(pl.cdiv(count, block), parts, self.batch),
            in_specs=[
                Inputs(**specs),
                tuple(self._spec(x, False) for x in of_queries),
                None if before is None else tuple(self._spec(x, self.by_keys) for x in before),
            ],
            out_specs=tuple(self._spec(x, self.by_keys) for x in outputs),
            out_shape=outputs,
            compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
            interpret=self.interpret,
            name=name,
        )
        with contextlib.nullcontext() if self.interpret else _on_a_gpu():
            return call(self.inputs, of_queries, None if before is None else tuple(before))

    def _spec(self, x: Array | None, of_keys: bool) -> pl.BlockSpec | None:
        """What a program is given of an array: all positions of its sample and of its head, or heads of its group.

        Whole blocks of positions: what is behind the end is masked.
        """
        if x is None:
            return None
        block = self.shape.blocks.keys if of_keys else self.shape.blocks.queries
        if x.ndim == 2:  # [#B, positions] or [#B, blocks]; one for all samples where it leads with 1
            length = pl.cdiv(x.shape[1], block) * block
            return pl.BlockSpec((None, length), (lambda i, h, b: (0, 0)) if x.shape[0] == 1 else lambda i, h, b: (b, 0))
        share = self.shape.share
        heads = share if self.by_keys and not of_keys else None
        head = (lambda h: jax.lax.div(h, share)) if of_keys and not self.by_keys and share > 1 else lambda h: h
        if x.ndim == 3:  # [B, H, S]
            return pl.BlockSpec((None, heads, pl.cdiv(x.shape[2], block) * block), lambda i, h, b: (b, head(h), 0))
        length = pl.cdiv(x.shape[1], block) * block
        return pl.BlockSpec((None, length, heads, self.shape.padded_width), lambda i, h, b: (b, 0, head(h), 0))


def _on_a_gpu() -> AbstractContextManager[None]:
    """Name a GPU where programs are made on a machine without one: Triton's lowering of jax 0.12 asks for its kind.

    By that it refuses what old GPUs lack; what runs is compiled for the devices that the program is for. A mesh that
    is in force names its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if jax.default_backend() == "gpu" or not mesh.empty:
        return contextlib.nullcontext()
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(mesh.update(abstract_device=gpu))


def triton_kernel(*, interpret: bool = False) -> TileKernel:
    """Return the kernels, for NVIDIA devices; or interpreted, the same by plain operations, block by block."""
    return TileKernel(partial(_forward, interpret=interpret), partial(_backward, interpret=interpret))


TRITON = triton_kernel()
"""The kernels, for NVIDIA devices."""
