"""The norm at the end of a Mamba-2 layer: gated, and over groups of heads."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.dims import named
from hetjax.models.scopes import scope

# B batch · S sequence · H heads · P head width


class GatedNorm(nnx.Module):
    """norm(y · silu(z)) · scale, where the norm divides by sqrt(mean square + epsilon) over the heads of a group.

    The gate comes first, as in the checkpoints of Nemotron-H (Mamba-2's own code has either order).
    """

    def __init__(self, heads: int, head_dim: int, groups: int, *, epsilon: float, rngs: nnx.Rngs):
        self.groups, self.epsilon = groups, epsilon
        ones = named(nnx.initializers.ones_init(), "heads", "head_dim")
        self.scale = nnx.Param(ones(rngs.params(), (heads, head_dim), jnp.float32))

    @scope("norm")
    def __call__(self, y: Float[Array, "B S H P"], z: Float[Array, "B S H P"]) -> Float[Array, "B S H P"]:
        """Return the normalized y · silu(z), in the dtype of y and scale."""
        return _gated_norm(y, z, self.scale[...], self.groups, self.epsilon)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(3, 4))
def _gated_norm(
    y: Float[Array, "B S H P"], z: Float[Array, "B S H P"], scale: Float[Array, "H P"], groups: int, epsilon: float
) -> Float[Array, "B S H P"]:
    wide = jnp.promote_types(y.dtype, jnp.float32)
    gated = y.astype(wide) * jax.nn.silu(z.astype(wide))
    grouped = gated.reshape(*y.shape[:2], groups, -1, y.shape[-1])
    mean_square = jnp.square(grouped).mean(axis=(-2, -1), keepdims=True)
    return (grouped * jax.lax.rsqrt(mean_square + epsilon)).reshape(y.shape).astype(y.dtype) * scale
