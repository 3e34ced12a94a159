"""Put encoder tokens into their positions of the text sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# B batch · S fused sequence · N encoder tokens · D width


def scatter_tokens(
    text: Float[Array, "B S D"], tokens: Float[Array, "B N D"], positions: Int[Array, "B N"]
) -> Float[Array, "B S D"]:
    """Return `text` with its placeholders overwritten by encoder tokens, in the dtype of `text`.

    `positions` holds each token's position in its own sequence, none twice; a position below 0, or of S or
    more, is padding and is dropped. What is overwritten and a dropped token get a gradient of zero.
    """
    # Padding goes to places of its own, so that none is named twice: else the gradient would have to find out which of
    # two tokens won, by a sum over all devices that hold the sequence.
    length, count = text.shape[1], tokens.shape[1]
    inside = (positions >= 0) & (positions < length)
    places = jnp.where(inside, positions, length + jnp.arange(count, dtype=jnp.int32))
    # One scatter a sample keeps the batch dim free of indices, so that it stays sharded.
    fill = jax.vmap(lambda text, new, place: text.at[place].set(new, mode="drop", unique_indices=True))
    return fill(text, tokens.astype(text.dtype), places)
