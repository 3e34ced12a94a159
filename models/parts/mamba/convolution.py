"""The weights of a causal convolution of every channel by itself (`hetjax.models.kernels.causal_conv`)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from hetjax.models.dims import named


class CausalConv(nnx.Module):
    """silu(bias + sum over j < K of kernel[K-1-j] * x_{t-j}), channel by channel.

    Kernel and bias are drawn uniformly from ±1/sqrt(K), the usual for a convolution with K inputs.
    """

    def __init__(self, taps: int, channels: Mapping[str, int], *, rngs: nnx.Rngs):
        def uniform(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
            return jax.random.uniform(key, shape, dtype, minval=-(taps**-0.5), maxval=taps**-0.5)

        shape = tuple(channels.values())
        self.kernel = nnx.Param(named(uniform, None, *channels)(rngs.params(), (taps, *shape), jnp.float32))
        self.bias = nnx.Param(named(uniform, *channels)(rngs.params(), shape, jnp.float32))
