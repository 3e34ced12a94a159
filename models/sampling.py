"""Choose the next token from logits: the most likely one, or one drawn at random.

Of the distribution softmax(logits / temperature), `top_k` keeps the k most likely tokens, and of what they share out
`top_p` the fewest of the most likely ones that together have at least that probability (nucleus sampling, Holtzman et
al. 2020). Of equally likely tokens those of lower ids come first. A token is drawn from the rest by Gumbel noise:
argmax(logits / temperature + noise).

Noise belongs to a seed, the number of the sample in its batch and the position of the token: no layout changes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from hetjax.models.dims import constrain
from hetjax.models.errors import ModelError

# B batch · V vocabulary

StopTokens = int | Sequence[int] | Int[Array, "..."]
"""One token, or several, after any of which a sample has ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token, whatever top_p and top_k are."""
    top_p: float = 1.0
    """Probability of the most likely tokens that are kept, more than 0; 1 keeps all."""
    top_k: int = 0
    """Number of the most likely tokens that are kept; 0 for all."""

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ModelError(f"Sampling: temperature = {self.temperature} must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ModelError(f"Sampling: 0 < top_p <= 1 must hold, but top_p = {self.top_p}; 1 keeps all tokens")
        if self.top_k < 0:
            raise ModelError(f"Sampling: top_k = {self.top_k} must be 0 or more; 0 keeps all tokens")

    @property
    def draws(self) -> bool:
        """Whether noise decides, and a seed matters."""
        return self.temperature > 0


GREEDY = Sampling(temperature=0.0)
"""The most likely token, always."""


def keys_of_samples(seed: int | UInt32[Array, ""], count: int) -> UInt32[Array, "B 2"]:
    """Return a random key for each sample of a batch."""
    # One kind of key, whatever JAX is set to: others draw differently for several samples at once.
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.random.key_data(jax.vmap(partial(jax.random.fold_in, root))(jnp.arange(count)))


def choose(
    logits: Float[Array, "B V"],
    sampling: Sampling = GREEDY,
    keys: UInt32[Array, "B 2"] | None = None,
    positions: Int[Array, " B"] | None = None,
) -> Int[Array, " B"]:
    """Return the next token of each sample, int32, for the given positions in their sequences.

    `keys` are those of `keys_of_samples`; keys and positions are needed where `sampling.draws`.
    """
    if not sampling.draws:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # All logits of a sample on each device that has some: those of one token a sample are few, and sorting and
    # summing up in one place is the same in every layout.
    logits = constrain(logits, "batch", None)
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / sampling.temperature

    def noise(key, position):
        key = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), position)
        return jax.random.gumbel(key, wide.shape[-1:], wide.dtype)

    noisy = wide + jax.vmap(noise)(keys, positions)
    return jnp.argmax(jnp.where(kept_tokens(wide, sampling), noisy, -jnp.inf), axis=-1).astype(jnp.int32)


def kept_tokens(logits: Float[Array, "B V"], sampling: Sampling) -> Bool[Array, "B V"]:
    """Return which tokens `top_k` and `top_p` keep, of logits that are divided by the temperature already."""
    if sampling.top_k == 0 and sampling.top_p == 1:
        return jnp.ones(logits.shape, bool)
    order = jnp.argsort(-logits, axis=-1, stable=True)
    best = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])
    kept = rank < (sampling.top_k or logits.shape[-1])
    if sampling.top_p < 1:
        share = jax.nn.softmax(jnp.where(kept, best, -jnp.inf), axis=-1)
        # What the tokens before have; for the first one it is exactly 0, so that there is always one.
        before = jnp.cumsum(share, axis=-1) - share
        kept = kept & (before < sampling.top_p)
    kept = jnp.broadcast_to(kept, logits.shape)
    return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)


def is_stop(tokens: Int[Array, "*batch"], stop_token: StopTokens) -> Bool[Array, "*batch"]:
    """Return whether each token is one of those that end a sample."""
    stops = jnp.asarray(stop_token, jnp.int32).reshape(-1)
    return (tokens[..., None] == stops).any(axis=-1)
