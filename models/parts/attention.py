"""Multi-head attention with grouped keys and values (Ainslie et al. 2023) and an optional cache of both.

Which kernel computes it, on one device or on many, is chosen in `hetjax.models.parallel.sharded_attention`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, SEQUENCE, constrain
from hetjax.models.parallel.sharded_attention import sharded_attention
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parallel.zigzag_order import SequenceOrder, sequence_shards
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.norms import RMSNorm
from hetjax.models.parts.rope import RopeTable, rotate
from hetjax.models.scopes import scope

# B batch · S queries · T keys, or slots of the cache · H heads · G groups of heads that share a key · K head width
# D width


_HEADS = ("heads", "kv_heads", "kv_heads")

Windows = tuple[tuple[int, int], ...]
"""Windows of neighbouring tokens that see nothing of each other: (how many, tokens of each), one after another."""


class Cache(NamedTuple):
    """Keys and values of one layer, or of a stack of layers with a leading dim; a token's slot is its position."""

    key: Float[Array, "B T G K"]
    value: Float[Array, "B T G K"]


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

    @scope("attention")
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
        """Return (what to add to the residual stream, the cache); causal with `positions` or `order`.

        Training gives `order`, that of `hetjax.models.parallel.zigzag_order.causal_order`: x, and `segments` where only
        tokens of equal ids attend to each other, are in it. Generation gives a `cache`: new keys and values go to the
        slots at `positions` of each sample (slots past its end are dropped) and all its slots are attended. `windows`
        saves what `segments` would mask, where no id is in two of them and the layout in force does not split the
        sequence; without positions or order.
        """
        query, key, value = sharded_linear(x, self.query, self.key, self.value, given=RESIDUAL, wanted=SEQUENCE)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        if cache is not None:
            cache = Cache(_write(cache.key, positions, key), _write(cache.value, positions, value))
            key, value = cache
        if windows is not None and sequence_shards() == 1:
            attended = self._attend_windows(query, key, value, segments, windows)
        else:
            attended = sharded_attention(query, key, value, positions=positions, order=order, segments=segments)
        attended = constrain(attended, *SEQUENCE, "heads", "head_dim")
        return sharded_linear(attended, self.output, given=SEQUENCE, wanted=RESIDUAL)[0], cache

    def _attend_windows(self, query, key, value, segments, windows: Windows):
        """Equal windows as samples of their own."""
        attended, start = [], 0
        for count, length in windows:
            window = slice(start, start + count * length)
            folded = [x[:, window].reshape(-1, length, *x.shape[2:]) for x in (query, key, value)]
            folded = [constrain(x, *SEQUENCE, heads, "head_dim") for x, heads in zip(folded, _HEADS, strict=True)]
            ids = None if segments is None else segments[:, window].reshape(-1, length)
            new = sharded_attention(*folded, segments=ids)
            attended.append(new.reshape(query.shape[0], count * length, *new.shape[2:]))
            start = window.stop
        return attended[0] if len(attended) == 1 else jnp.concatenate(attended, axis=1)


def _write(
    slots: Float[Array, "B T G K"], positions: Int[Array, "B S"], new: Float[Array, "B S G K"]
) -> Float[Array, "B T G K"]:
    write_sample = jax.vmap(lambda slot, position, new: slot.at[position].set(new, mode="drop"))
    return constrain(write_sample(slots, positions, new.astype(slots.dtype)), "batch", "seq", "kv_heads", "head_dim")
