"""Generate with a cache on one device, without any mesh: what generation over meshes is compared with."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from hetjax.models.decoder import LanguageModel
from hetjax.models.sampling import GREEDY, Sampling, StopTokens, choose, is_stop, keys_of_samples

# B batch · S longest prompt · N image tokens a sample · D width · R new tokens


def generate(
    model: LanguageModel,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    image_tokens: Float[Array, "B N D"] | None = None,
    image_positions: Int[Array, "B N"] | None = None,
    *,
    max_new_tokens: int,
    stop_token: StopTokens,
    sampling: Sampling = GREEDY,
    seed: int | UInt32[Array, ""] = 0,
    **inputs: Array,
) -> Int[Array, "B R"]:
    """Return the `max_new_tokens` next tokens of each prompt: the most likely ones, or as `sampling` says.

    Sample b's prompt is tokens[b, :lengths[b]], padded at its end; generated token t takes the position
    lengths[b] + t. `inputs` are others of the model's `decode`, such as those of audio. After a sample has emitted
    `stop_token`, one of several, it only repeats that. Draws depend on `seed`, the number of the sample and the
    position. To be jitted with `max_new_tokens` and `sampling` static.
    """
    batch, longest = tokens.shape
    dtype = model.embedding[...].dtype
    keys = keys_of_samples(seed, batch) if sampling.draws else None
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
    first = choose(out["logits"], sampling, keys, lengths).astype(tokens.dtype)

    def step(carry, offset):
        cache, previous = carry
        out, cache = model.decode(cache, positions=(lengths + offset)[:, None], tokens=previous[:, None])
        chosen = choose(out["logits"], sampling, keys, lengths + offset + 1).astype(tokens.dtype)
        new = jnp.where(is_stop(previous, stop_token), previous, chosen)
        return (cache, new), new

    _, rest = jax.lax.scan(step, (cache, first), jnp.arange(max_new_tokens - 1))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
