"""Greedy generation with a cache of keys and values."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.decoder import LanguageModel

# B batch · S longest prompt · N image tokens a sample · D width · R new tokens


def generate(
    model: LanguageModel,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    image_tokens: Float[Array, "B N D"] | None = None,
    image_positions: Int[Array, "B N"] | None = None,
    *,
    max_new_tokens: int,
    stop_token: int,
    **inputs: Array,
) -> Int[Array, "B R"]:
    """The `max_new_tokens` most likely next tokens of each prompt, one after another.

    Sample b's prompt is tokens[b, :lengths[b]], padded at its end; generated token t takes the position lengths[b] +
    t. `inputs` are others of the model's `decode`, such as those of sound. After a sample has emitted `stop_token` it
    emits nothing else. To be jitted with `max_new_tokens` static; runs on whatever device holds the weights.
    """
    batch, longest = tokens.shape
    dtype = model.embedding[...].dtype
    prompt_positions = jnp.broadcast_to(jnp.arange(longest), tokens.shape)
    out, cache = model.decode(
        model.init_cache(batch, longest + max_new_tokens, dtype),
        positions=prompt_positions,
        tokens=tokens,
        image_tokens=image_tokens,
        image_positions=image_positions,
        last=lengths - 1,
        **inputs,
        **({"lengths": lengths} if "lengths" in inspect.signature(model.decode).parameters else {}),
    )
    lengths = out.get("lengths", lengths)
    first = jnp.argmax(out["logits"], axis=-1).astype(tokens.dtype)

    def step(carry, offset):
        cache, previous = carry
        out, cache = model.decode(cache, positions=(lengths + offset)[:, None], tokens=previous[:, None])
        best = jnp.argmax(out["logits"], axis=-1).astype(tokens.dtype)
        new = jnp.where(previous == stop_token, previous, best)
        return (cache, new), new

    _, rest = jax.lax.scan(step, (cache, first), jnp.arange(max_new_tokens - 1))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
