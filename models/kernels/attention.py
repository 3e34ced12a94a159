"""Attention of one device by plain operations, for every dtype and backend."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# B batch · S queries · T keys, or slots of a cache · H heads · G groups of heads that share a key · K head width


@partial(jax.checkpoint, prevent_cse=False)
def attend(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    positions: Int[Array, "#B S"] | None = None,
    segments: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H K"]:
    """Return softmax(query · key / sqrt(K)) · value, in the dtype of the values; head h reads group h // (H / G).

    With `positions`, a query sees the keys 0 up to its own position; without, all of them. With `segments`,
    for S = T, it sees of these the keys of its own segment only. Scores and softmax are float32 at least:
    `jax.nn.dot_product_attention` fixes them to float32, which would break float64 runs. The backward
    pass keeps query, key and value and computes the S*T scores again
    (selective recomputation, Korthikanti et al. 2022).
    """
    batch, queries, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, queries, groups, heads // groups, width)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bsgrk,btgk->bgrst", grouped, key, preferred_element_type=wide) * width**-0.5
    if positions is not None:
        seen = jnp.arange(key.shape[1]) <= positions[:, :, None]
        scores = jnp.where(seen[:, None, None], scores, jnp.finfo(wide).min)
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]
        scores = jnp.where(same[:, None, None], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bgrst,btgk->bsgrk", weights, value).reshape(query.shape)
