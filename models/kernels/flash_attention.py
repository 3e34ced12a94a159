"""Attention whose memory grows with the number of tokens and nothing else, by a kernel that works on tiles.

The forward keeps the output and a log-sum-exp a query, from which the backward computes the scores again, tile by tile
(Dao et al. 2022, FlashAttention).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hetjax.models.kernels.attention_mask import Visible
from hetjax.models.kernels.blocked_attention import Gradients, blocked_backward, blocked_forward
from hetjax.models.kernels.partial_attention import PartialAttention

# B batch · S queries · T keys · H heads · G groups of heads that share a key · K head width


class TileKernel(NamedTuple):
    """What computes attention of some queries among some keys; of functions, so that it is hashable.

    Attributes:
        forward: (query, key, value, visible, dtype, before) to attention and its log-sum-exp, as
            `hetjax.models.kernels.blocked_attention.blocked_forward`.
        backward: (query, key, value, visible, log-sum-exp, projection, gradient, dtype, before) to the three gradients,
            as `hetjax.models.kernels.blocked_attention.blocked_backward`.
    """

    forward: Callable[..., PartialAttention]
    backward: Callable[..., Gradients]


BLOCKED = TileKernel(blocked_forward, blocked_backward)
"""Plain operations, for every backend and dtype."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def flash_attention(
    kernel: TileKernel,
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    visible: Visible,
) -> Float[Array, "B S H K"]:
    """Return softmax(query · key / sqrt(K)) · value over the keys that each query sees, in the dtype of the values.

    Head h reads group h // (H / G). The output of a query that sees no key is 0.
    """
    return kernel.forward(query, key, value, visible, value.dtype).values


def _forward(kernel: TileKernel, query, key, value, visible: Visible):
    output, log_sum = kernel.forward(query, key, value, visible, value.dtype)
    return output, (query, key, value, visible, output, log_sum)


def _backward(kernel: TileKernel, residuals, gradient):
    query, key, value, visible, output, log_sum = residuals
    projection = projection_of(gradient, output)
    return *kernel.backward(query, key, value, visible, log_sum, projection, gradient, query.dtype), None


flash_attention.defvjp(_forward, _backward)


def projection_of(gradient: Float[Array, "B S H K"], output: Float[Array, "B S H K"]) -> Float[Array, "B H S"]:
    """Return the product of an output and its gradient, summed over K, in float32 at least."""
    wide = jnp.promote_types(gradient.dtype, jnp.float32)
    return jnp.einsum("bshk,bshk->bhs", gradient, output, preferred_element_type=wide)
