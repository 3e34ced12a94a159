"""Convolve every channel by itself, causally, within the documents of packed sequences."""

from __future__ import annotations

from functools import partial
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# B batch · S sequence · K taps · T = K - 1 + S, the sequence and the K - 1 positions before it
# F channels, in one dim or more


Of = TypeVar("Of")


class Streams(NamedTuple, Generic[Of]):
    """The three arrays that pass through the convolution of a Mamba-2 layer, or what goes with each of them."""

    x: Of
    b: Of
    c: Of


@partial(jax.checkpoint, prevent_cse=False)
def causal_conv(
    x: Float[Array, "B S *F"],
    before: Float[Array, "B history *F"],
    kernel: Float[Array, " K *F"],
    bias: Float[Array, "*F"],
    ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B S *F"]:
    """Return silu of the convolution of `x`, ahead of which come K - 1 inputs `before`, in the dtype of x.

    With `ids`, those of the documents as `ids_from` makes them, a position sees its own document alone. Computed in
    float32 at least.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    taps, length = kernel.shape[0], x.shape[1]
    inputs = jnp.concatenate([before.astype(x.dtype), x], axis=1).astype(wide)
    total, seen = bias.astype(wide), None
    for lag in range(taps):
        first = taps - 1 - lag
        term = inputs[:, first : first + length] * kernel[first].astype(wide)
        if ids is not None and lag:
            joined = ids[:, first + 1 : first + 1 + length] == ids[:, first : first + length]
            seen = joined if seen is None else seen & joined
            term = jnp.where(seen.reshape(*seen.shape, *(1,) * (x.ndim - 2)), term, 0)
        total = total + term
    return jax.nn.silu(total).astype(x.dtype)


def ids_from(segments: Int[Array, "B S"], taps: int) -> Int[Array, "B T"]:
    """Return the ids of a sequence and of the K - 1 positions before the first, which are of its document."""
    return jnp.pad(segments, ((0, 0), (taps - 1, 0)), mode="edge")


def starts_from(ids: Int[Array, "B T"], taps: int) -> Bool[Array, "B S"]:
    """Return whether a position's id is another than that of the one before: a document starts."""
    return ids[:, taps - 1 :] != ids[:, taps - 2 : -1]
