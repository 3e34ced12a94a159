"""Sum a weighted cross entropy over tokens."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# B batch · S sequence · V vocabulary


@partial(jax.checkpoint, prevent_cse=False)
def cross_entropy(
    logits: Float[Array, "B S V"], labels: Int[Array, "B S"], weights: Float[Array, "B S"]
) -> Float[Array, ""]:
    """Return the sum over tokens of weight * (logsumexp(logits) - logits[label]), in nats and in float32 at least.

    A label outside the vocabulary is allowed where its weight is 0. The label's logit is picked by
    comparing an iota instead of by an index, so that a vocabulary sharded over devices stays so. The
    backward pass keeps the logits in their own dtype, nothing wider.
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    vocabulary = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.where(vocabulary == labels[..., None], wide, 0).sum(axis=-1)
    return jnp.sum(weights.astype(wide.dtype) * (jax.nn.logsumexp(wide, axis=-1) - chosen))
