"""Rotary position embedding (Su et al. 2021), pairing channel i with channel i + K/2 as Llama does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# B batch, or 1 where every sample has the same positions · S sequence · H heads · K head width

RopeTable = tuple[Float[Array, "B S 1 half"], Float[Array, "B S 1 half"]]


def rope_table(
    positions: Int[Array, "B S"], head_dim: int, theta: float, dtype: jax.typing.DTypeLike = jnp.float32
) -> RopeTable:
    """Cosine and sine of position * theta^(-2i/K) for each of the K/2 channel pairs.

    Computed in float32 at least; `dtype` is that of the activations to rotate.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    exponents = jnp.arange(0, head_dim, 2, dtype=wide) / head_dim
    angles = positions[:, :, None, None].astype(wide) * jnp.power(jnp.asarray(theta, wide), -exponents)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B S H K"], table: RopeTable) -> Float[Array, "B S H K"]:
    """Turn each channel pair of `x` by its angle in `table`; the result has the dtype of `x`."""
    cos, sin = table
    low, high = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)
