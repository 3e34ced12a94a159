"""Queries, keys, values and what is seen of them, for tests of kernels."""

import jax
import jax.numpy as jnp
import numpy as np

from hetjax.models.kernels.attention_mask import Visible, causal

# B batch · S queries · T keys · H heads · G groups · K head width


def make(
    queries: int,
    keys: int,
    *,
    groups: int,
    limits: str,
    packing: str,
    dtype,
    batch: int = 2,
    heads: int = 4,
    width: int = 6,
):
    """([query, key, value, a weight for each output], Visible); every query sees a key.

    `limits` is "all", "causal" or "limits", those of each sample; `packing` of equal lengths "", "sorted" or "mixed".
    """
    random = np.random.default_rng(queries + keys)
    query, weight = random.normal(size=(2, batch, queries, heads, width))
    key, value = random.normal(size=(2, batch, keys, groups, width))
    ids = random.integers(0, 3, (batch, queries))
    ids = jnp.asarray(np.sort(ids, axis=1) if packing == "sorted" else ids, jnp.int32)
    ids = ids if packing and queries == keys else None
    # No less than the own position, so that a query sees its own segment.
    last = np.maximum(np.arange(queries), random.integers(0, keys, (batch, queries))).astype(np.int32)
    last = {"all": None, "causal": causal(queries), "limits": jnp.asarray(last)}[limits]
    return [jnp.asarray(x, dtype) for x in (query, key, value, weight)], Visible(last, ids, ids)


def with_gradients(function, arrays):
    """(output, gradients of query, key and value) of a function of these."""

    def run(query, key, value, weight):
        output, vjp = jax.vjp(function, query, key, value)
        return output, *vjp(weight.astype(output.dtype))

    return jax.jit(run)(*arrays)
