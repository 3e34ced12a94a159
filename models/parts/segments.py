"""Packed sequences: several documents in one row of a batch, told apart by an id a row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from hetjax.models.dims import constrain

# B batch · S sequence


def positions_in_segments(segments: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Each row's position in its own document, a run of equal ids: 0 where one starts."""
    segments = constrain(segments, "batch", None)
    rows = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return rows - jax.lax.cummax(jnp.where(starts, rows, 0), axis=1)
