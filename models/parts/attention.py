"""Multi-head attention with grouped keys and values (Ainslie et al. 2023) and an optional cache of both."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from models.dims import constrain
from models.parts.linear import Linear
from models.parts.rope import RopeTable, rotate

# B batch · S queries · T keys, or slots of the cache · H heads · G groups of heads that share a key · K head width
# D width


class Cache(NamedTuple):
    """Keys and values of one layer, or of a stack of layers with a leading dim; a token's slot is its position."""

    key: Float[Array, "B T G K"]
    value: Float[Array, "B T G K"]


@partial(jax.checkpoint, prevent_cse=False)
def attend(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G K"],
    positions: Int[Array, "#B S"] | None = None,
) -> Float[Array, "B S H K"]:
    """softmax(query · key / sqrt(K)) · value; head h reads group h // (H / G).

    With `positions`, a query sees the keys 0 up to its own position; without, all of them. Scores and
    softmax are float32 at least: `jax.nn.dot_product_attention` fixes them to float32, which would
    break float64 runs. The backward pass keeps query, key and value and computes the S*T scores again
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
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bgrst,btgk->bsgrk", weights, value).reshape(query.shape)


class Attention(nnx.Module):
    """Projections to queries, keys and values, `attend`, and a projection back to the width.

    Queries, keys and values have no bias. A bias on the keys adds the same number to all scores of a
    query, which softmax cancels: its gradient is exactly zero but for rounding, and an adaptive
    optimizer scales that rounding up to full steps of noise.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, *, output_bias: bool = False, rngs: nnx.Rngs
    ):
        self.query = Linear({"embed": width}, {"heads": heads, "head_dim": head_dim}, rngs=rngs)
        self.key = Linear({"embed": width}, {"kv_heads": kv_heads, "head_dim": head_dim}, rngs=rngs)
        self.value = Linear({"embed": width}, {"kv_heads": kv_heads, "head_dim": head_dim}, rngs=rngs)
        self.output = Linear({"heads": heads, "head_dim": head_dim}, {"embed": width}, bias=output_bias, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        positions: Int[Array, "#B S"] | None = None,
        rope: RopeTable | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Causal when `positions` are given. With a `cache`, new keys and values go to the slots at
        `positions` (one row a sample; slots past its end are dropped) and all its slots are attended.
        """
        query = constrain(self.query(x), "batch", "seq", "heads", "head_dim")
        key = constrain(self.key(x), "batch", "seq", "kv_heads", "head_dim")
        value = constrain(self.value(x), "batch", "seq", "kv_heads", "head_dim")
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        if cache is not None:
            cache = Cache(_write(cache.key, positions, key), _write(cache.value, positions, value))
            key, value = cache
        attended = constrain(attend(query, key, value, positions), "batch", "seq", "heads", "head_dim")
        return self.output(attended), cache


def _write(
    slots: Float[Array, "B T G K"], positions: Int[Array, "B S"], rows: Float[Array, "B S G K"]
) -> Float[Array, "B T G K"]:
    write_sample = jax.vmap(lambda slot, position, row: slot.at[position].set(row, mode="drop"))
    return constrain(write_sample(slots, positions, rows.astype(slots.dtype)), "batch", "seq", "kv_heads", "head_dim")
