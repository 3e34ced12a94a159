"""Logits of a language model by way of its cache, on one device."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models import LanguageModel, NemotronH

# B batch · S sequence · V vocabulary


def cached_logits(
    model: LanguageModel | NemotronH,
    tokens: np.ndarray,
    *,
    prompt: int,
    dtype: np.dtype,
    decoder: LanguageModel | NemotronH | None = None,
) -> np.ndarray:
    """Return logits [B, S, V] of tokens [B, S].

    If `prompt` is S, each position's come from a prefill of the whole sequence. Else those of position `prompt` - 1
    come from a prefill of so many tokens, and the following ones token by token, by `decoder` if it is given; those of
    positions before are 0.
    """
    batch, length = tokens.shape
    cache = model.init_cache(batch, length, dtype)

    @functools.partial(nnx.jit, static_argnames="count")
    def prefill(model, cache, position, count):
        positions = jnp.broadcast_to(jnp.arange(count), (batch, count))
        last = jnp.full(batch, position)
        out, cache = model.decode(cache, positions=positions, tokens=tokens[:, :count], last=last)
        return out["logits"], cache

    @nnx.jit
    def decode(model, cache, position, tokens):
        out, cache = model.decode(cache, positions=jnp.full((batch, 1), position), tokens=tokens)
        return out["logits"], cache

    if prompt == length:
        return np.stack([prefill(model, cache, position, length)[0] for position in range(length)], axis=1)
    out = np.zeros((batch, length, model.config.vocab_size), dtype)
    out[:, prompt - 1], cache = prefill(model, cache, prompt - 1, prompt)
    decoder = model if decoder is None else decoder
    for position in range(prompt, length):
        out[:, position], cache = decode(decoder, cache, position, tokens[:, position : position + 1])
    return out
