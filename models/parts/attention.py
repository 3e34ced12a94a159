"""Multi-head attention with grouped keys and values (Ainslie et al. 2023) and an optional cache of both.

Where the layout in force splits the sequence, keys and values travel between devices
(`hetjax.models.parallel.ring_attention`); else GPUs that can run a fused kernel
(`hetjax.models.kernels.fused_attention`), but for generation, which attends to a cache.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, ROWS, constrain, split_of, splits_in_force
from hetjax.models.errors import LayoutError
from hetjax.models.kernels.fused_attention import fused_attention, is_fusable
from hetjax.models.parallel.ring_attention import attend_across
from hetjax.models.parallel.sharded_linear import project
from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.norms import RMSNorm
from hetjax.models.parts.rope import RopeTable, rotate

# B batch · S queries · T keys, or slots of the cache · H heads · G groups of heads that share a key · K head width
# D width


_HEADS = ("heads", "kv_heads", "kv_heads")

Windows = tuple[tuple[int, int], ...]
"""Runs of neighbouring rows that see nothing of each other: (how many, rows of each), one after another."""


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
    segments: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H K"]:
    """softmax(query · key / sqrt(K)) · value; head h reads group h // (H / G).

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


class Attention(nnx.Module):
    """Projections to queries, keys and values, `attend`, and a projection back to the width.

    Queries, keys and values have biases where `qkv_bias` says so. Without rotations, one on the keys adds the same
    number to all scores of a query, which softmax cancels: its gradient is exactly zero but for rounding, and an
    adaptive optimizer would scale that rounding up to full steps of noise. `fixed_key_bias` gives it no gradient.
    With `head_norm_epsilon`, each head of queries and of keys passes an RMSNorm of its K channels before it is rotated
    (Dehghani et al. 2023, as Qwen3 has it).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        output_bias: bool = False,
        qkv_bias: bool = False,
        fixed_key_bias: bool = False,
        head_norm_epsilon: float | None = None,
        rngs: nnx.Rngs,
    ):
        of_queries, of_keys = {"heads": heads, "head_dim": head_dim}, {"kv_heads": kv_heads, "head_dim": head_dim}
        self.query = Linear({"embed": width}, of_queries, bias=qkv_bias, rngs=rngs)
        self.key = Linear({"embed": width}, of_keys, bias=qkv_bias, fixed_bias=fixed_key_bias, rngs=rngs)
        self.value = Linear({"embed": width}, of_keys, bias=qkv_bias, rngs=rngs)
        self.output = Linear({"heads": heads, "head_dim": head_dim}, {"embed": width}, bias=output_bias, rngs=rngs)
        normed = head_norm_epsilon is not None
        self.query_norm = RMSNorm(head_dim, epsilon=head_norm_epsilon, rngs=rngs) if normed else None
        self.key_norm = RMSNorm(head_dim, epsilon=head_norm_epsilon, rngs=rngs) if normed else None

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        positions: Int[Array, "#B S"] | None = None,
        order: SequenceOrder | None = None,
        segments: Int[Array, "B S"] | None = None,
        rope: RopeTable | None = None,
        cache: Cache | None = None,
        windows: Windows | None = None,
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Causal when `positions` or `order` are given, else every row attends to all.

        Training gives `order`, that of `hetjax.models.parallel.zigzag_order.causal_order`: the rows of x, and
        `segments` where only rows of equal ids attend to each other, are in it. Generation gives a `cache`: new keys
        and values go to the slots at `positions` (one row a sample; slots past its end are dropped) and all its slots
        are attended. `windows` saves what `segments` would mask, where no id is in two of them and the layout in force
        does not split the sequence; without positions or order.
        """
        query, key, value = project(x, self.query, self.key, self.value, given=RESIDUAL, wanted=ROWS)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        if cache is not None:
            cache = Cache(_write(cache.key, positions, key), _write(cache.value, positions, value))
            key, value = cache
        if windows is not None and split_of("seq") is None:
            attended = self._attend_windows(query, key, value, segments, windows)
        else:
            attended = self._attend(query, key, value, positions, order, segments)
        attended = constrain(attended, *ROWS, "heads", "head_dim")
        return project(attended, self.output, given=ROWS, wanted=RESIDUAL)[0], cache

    def _attend_windows(self, query, key, value, segments, windows: Windows):
        """Equal windows as samples of their own."""
        attended, start = [], 0
        for count, length in windows:
            rows = slice(start, start + count * length)
            folded = [x[:, rows].reshape(-1, length, *x.shape[2:]) for x in (query, key, value)]
            folded = [constrain(x, *ROWS, heads, "head_dim") for x, heads in zip(folded, _HEADS, strict=True)]
            ids = None if segments is None else segments[:, rows].reshape(-1, length)
            new = self._attend(*folded, None, None, ids)
            attended.append(new.reshape(query.shape[0], count * length, *new.shape[2:]))
            start = rows.stop
        return attended[0] if len(attended) == 1 else jnp.concatenate(attended, axis=1)

    def _attend(self, query, key, value, positions, order, segments):
        splits, split = splits_in_force(), split_of("seq")
        shards = 1 if split is None else split.degree
        if order is not None and order.shards != shards:
            raise LayoutError(
                f"Attention: the order of rows is for {order.shards} shards, but the layout in force has {shards} of "
                "seq; make it with causal_order inside the same layout"
            )
        if positions is None and shards > 1:
            return attend_across(splits, query, key, value, segments, causal=order is not None)
        if positions is None and is_fusable(query, segments):
            return fused_attention(query, key, value, segments, causal=order is not None)
        if order is not None:
            positions = jnp.asarray(order.rows)[None]
        return attend(query, key, value, positions, segments)


def _write(
    slots: Float[Array, "B T G K"], positions: Int[Array, "B S"], rows: Float[Array, "B S G K"]
) -> Float[Array, "B T G K"]:
    write_sample = jax.vmap(lambda slot, position, row: slot.at[position].set(row, mode="drop"))
    return constrain(write_sample(slots, positions, rows.astype(slots.dtype)), "batch", "seq", "kv_heads", "head_dim")
