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
    return _fill(text, tokens.astype(text.dtype), places)


@jax.custom_vjp
def _fill(
    text: Float[Array, "B S D"], tokens: Float[Array, "B N D"], places: Int[Array, "B N"]
) -> Float[Array, "B S D"]:
    """The text with its positions `places` overwritten, each named once; S or more is none.

    Its gradient is written out: where the text has none, its table being frozen, JAX would make an array of zeros in
    the forward and keep it for the backward, on every device that of the whole batch.
    """
    # One scatter a sample keeps the batch dim free of indices, so that it stays sharded.
    return jax.vmap(lambda text, new, place: text.at[place].set(new, mode="drop", unique_indices=True))(
        text, tokens, places
    )


def _forward(text, tokens, places):
    return _fill(text, tokens, places), places


def _backward(places, gradient):
    take = jax.vmap(lambda gradient, place: gradient.at[place].get(mode="fill", fill_value=0, unique_indices=True))
    of_tokens = take(gradient, places)
    return _fill(gradient, jnp.zeros_like(of_tokens), places), of_tokens, None


_fill.defvjp(_forward, _backward)
