"""Merge attention over parts of the keys into attention over all of them, by the log-sum-exp of each part.

(Milakov and Gimelshein 2018; Dao et al. 2022, FlashAttention.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

# B batch · S queries · H heads · K head width


class PartialAttention(NamedTuple):
    """Attention of queries to some of their keys, in float32 at least.

    Attributes:
        values: softmax over these keys · their values.
        log_sum: log-sum-exp of the scores; of a query that sees none of the keys, less than any score.
    """

    values: Float[Array, "B S H K"]
    log_sum: Float[Array, "B H S"]


def nothing_seen(query: Float[Array, "B S H K"]) -> PartialAttention:
    """Return attention to no key."""
    batch, queries, heads, _ = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    # Half of the least number: still finite to another base.
    least = jnp.finfo(wide).min / 2
    return PartialAttention(jnp.zeros(query.shape, wide), jnp.full((batch, heads, queries), least, wide))


def merge(first: PartialAttention, second: PartialAttention) -> PartialAttention:
    """Return attention to the keys of both."""
    largest = jnp.maximum(first.log_sum, second.log_sum)
    shares = [jnp.exp(part.log_sum - largest) for part in (first, second)]
    total = shares[0] + shares[1]
    values = [
        part.values * jnp.moveaxis(share / total, 1, 2)[..., None]
        for part, share in zip((first, second), shares, strict=True)
    ]
    return PartialAttention(values[0] + values[1], largest + jnp.log(total))
