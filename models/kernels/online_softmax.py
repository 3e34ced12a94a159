"""Compute softmax attention one tile at a time: some queries against some keys, forward and backward.

The softmax runs online (Milakov and Gimelshein 2018; Rabe and Staats 2021): of every query the
largest score so far, the sum of exp(score - largest) and the values weighted by it are kept, so that
tiles may come in any order, one after another. The backward pass needs of the whole softmax only its
log-sum-exp (Dao et al. 2022, FlashAttention).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# B batch · S queries of the tile · T its keys · G groups of heads that share a key · R heads of a group · K head width


class OnlineSoftmax(NamedTuple):
    """The softmax of each query over the tiles so far, in float32 at least.

    Attributes:
        largest: the largest score.
        total: the sum of exp(score - largest).
        values: the values, weighted by exp(score - largest) and summed.
    """

    largest: Float[Array, "B G R S"]
    total: Float[Array, "B G R S"]
    values: Float[Array, "B G R S K"]


def empty_softmax(query: Float[Array, "B S G R K"]) -> OnlineSoftmax:
    """Return the softmax before any tile."""
    batch, queries, groups, share, width = query.shape
    wide, shape = _wide(query), (batch, groups, share, queries)
    return OnlineSoftmax(
        jnp.full(shape, jnp.finfo(wide).min, wide), jnp.zeros(shape, wide), jnp.zeros((*shape, width), wide)
    )


def add_tile(
    running: OnlineSoftmax,
    query: Float[Array, "B S G R K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    seen: Bool[Array, "#B S T"] | None,
) -> OnlineSoftmax:
    """Return `running` after one more tile; a query sees the keys where `seen` holds, all without.

    A query that sees no key of a tile counts them with a weight that vanishes as soon as it sees one.
    """
    scores = _scores(query, key, seen)
    largest = jnp.maximum(running.largest, scores.max(axis=-1))
    weights = jnp.exp(scores - largest[..., None])
    kept = jnp.exp(running.largest - largest)
    new = jnp.einsum("bgrst,btgk->bgrsk", weights.astype(value.dtype), value, preferred_element_type=scores.dtype)
    return OnlineSoftmax(largest, running.total * kept + weights.sum(axis=-1), running.values * kept[..., None] + new)


def finish(running: OnlineSoftmax) -> tuple[Float[Array, "B G R S K"], Float[Array, "B G R S"]]:
    """Return (attention output, log-sum-exp of the scores) once every tile was added."""
    return running.values / running.total[..., None], running.largest + jnp.log(running.total)


def tile_gradients(
    query: Float[Array, "B S G R K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    seen: Bool[Array, "#B S T"] | None,
    gradient: Float[Array, "B S G R K"],
    log_sum: Float[Array, "B G R S"],
    projection: Float[Array, "B G R S"],
) -> tuple[Float[Array, "B S G R K"], Float[Array, "B T G K"], Float[Array, "B T G K"]]:
    """Return one tile's parts of the gradients of query, key and value, in float32 at least.

    `gradient` is that of the output, `projection` its product with the output, summed over K; the scores
    are computed again.
    """
    scores = _scores(query, key, seen)
    wide, narrow = scores.dtype, query.dtype
    weights = jnp.exp(scores - log_sum[..., None])
    of_weights = jnp.einsum("bsgrk,btgk->bgrst", gradient, value, preferred_element_type=wide)
    of_scores = (weights * (of_weights - projection[..., None]) * query.shape[-1] ** -0.5).astype(narrow)
    return (
        jnp.einsum("bgrst,btgk->bsgrk", of_scores, key, preferred_element_type=wide),
        jnp.einsum("bgrst,bsgrk->btgk", of_scores, query, preferred_element_type=wide),
        jnp.einsum("bgrst,bsgrk->btgk", weights.astype(narrow), gradient, preferred_element_type=wide),
    )


def _wide(x: Array):
    return jnp.promote_types(x.dtype, jnp.float32)


def _scores(
    query: Float[Array, "B S G R K"], key: Float[Array, "B T G K"], seen: Bool[Array, "#B S T"] | None
) -> Float[Array, "B G R S T"]:
    wide = _wide(query)
    scores = jnp.einsum("bsgrk,btgk->bgrst", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    return scores if seen is None else jnp.where(seen[:, None, None], scores, jnp.finfo(wide).min)
