"""Attention of one device by the fused kernel of cuDNN, which holds no score in memory (Dao et al. 2022).

For bfloat16 and float16 on NVIDIA devices that have it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# B batch · S sequence · H heads · G groups of heads that share a key · K head width


def is_fusable(query: Float[Array, "B S H K"], device: jax.Device) -> bool:
    """Return whether the kernel takes these queries, as long as their keys, on devices like this one.

    It wants 16 bits a number, and heads of a multiple of 8 up to 128 wide (256 from compute capability 9.0 on). JAX
    refuses its backward for odd lengths, as if there were a bias. Kernels of ROCm are left alone.
    """
    capability = compute_capability(device)
    length, width, widest = query.shape[1], query.shape[-1], 256 if capability >= (9, 0) else 128
    taken = width % 8 == 0 and width <= widest and length % 2 == 0
    return capability >= (8, 0) and query.dtype in (jnp.bfloat16, jnp.float16) and taken


def fused_attention(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    *,
    causal: bool,
) -> Float[Array, "B S H K"]:
    """Return softmax(query · key / sqrt(K)) · value in natural order, as `hetjax.models.kernels.attention.attend`.

    The kernel knows no segments: they would be a bias of [heads, S, S]. `hetjax.models.kernels.triton_attention` does.
    """
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="cudnn")


def compute_capability(device: jax.Device) -> tuple[int, ...]:
    """Return that of an NVIDIA device, e.g. (9, 0); () for others."""
    parts = str(getattr(device, "compute_capability", "")).split(".")
    return tuple(map(int, parts)) if device.platform == "gpu" and all(part.isdigit() for part in parts) else ()
