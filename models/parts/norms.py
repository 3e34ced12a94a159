"""Normalize each token: RMSNorm and LayerNorm.

Statistics are taken in float32 at least, whatever the dtype of the weights. The backward pass keeps
the input alone and computes the statistics again, which costs a pass over one activation and saves
several float32 copies of it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.dims import named
from hetjax.models.scopes import scope

# D width


def _standardize(x: Float[Array, "*batch D"], epsilon: float) -> Float[Array, "*batch D"]:
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _rms_norm(x: Float[Array, "*batch D"], scale: Float[Array, " D"], epsilon: float) -> Float[Array, "*batch D"]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _standardize(wide, epsilon).astype(x.dtype) * scale


@partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _layer_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "*batch D"]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _standardize(wide - wide.mean(axis=-1, keepdims=True), epsilon).astype(x.dtype) * scale + bias


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + epsilon) * scale (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = nnx.Param(named(nnx.initializers.ones_init(), "width")(rngs.params(), (width,), jnp.float32))

    @scope("norm")
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Return the normalized x, in the dtype of x and scale."""
        return _rms_norm(x, self.scale[...], self.epsilon)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias (Ba et al. 2016)."""

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale = nnx.Param(named(nnx.initializers.ones_init(), "width")(rngs.params(), (width,), jnp.float32))
        self.bias = nnx.Param(named(nnx.initializers.zeros_init(), "width")(rngs.params(), (width,), jnp.float32))

    @scope("norm")
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Return the normalized x, in the dtype of x and scale."""
        return _layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
