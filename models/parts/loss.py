"""Sum a weighted cross entropy over tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.parallel.sharded_loss import token_losses

# B batch · S sequence · D width · V vocabulary


def cross_entropy(
    x: Float[Array, "B S D"],
    kernel: Float[Array, "_ _"],
    labels: Int[Array, "B S"],
    weights: Float[Array, "B S"],
    *,
    vocab_dim: int,
) -> Float[Array, ""]:
    """Return the sum over tokens of weight * (logsumexp(logits) - logits[label]), in nats and in float32 at least.

    The logits are x times the kernel [D, V] (`vocab_dim` 1) or times a table [V, D], transposed (`vocab_dim` 0). They
    are made in chunks of tokens, never all at once (`hetjax.models.kernels.token_losses`). `x` is the residual stream
    after its last norm. A label outside the vocabulary is allowed where its weight is 0.
    """
    losses = token_losses(x, kernel, labels, vocab_dim=vocab_dim)
    return jnp.sum(weights.astype(losses.dtype) * losses)
