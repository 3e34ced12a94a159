"""Find positions and documents in packed sequences: several documents in one row of a batch, with an id a position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from hetjax.models.dims import SEQUENCE, constrain

# B batch · S sequence


def positions_in_segments(segments: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Return each token's position in its own document, neighbours with equal ids: 0 where one starts; int32."""
    segments = constrain(segments, "batch", None)
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    return index - jax.lax.cummax(jnp.where(_starts(segments), index, 0), axis=1)


def numbered(segments: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Return ids that count neighbours with equal ids from 1 on: in order, so that attention skips what is apart."""
    segments = constrain(segments, "batch", None)
    return constrain(jnp.cumsum(_starts(segments), axis=1, dtype=jnp.int32), *SEQUENCE)


def _starts(segments: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    return jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
