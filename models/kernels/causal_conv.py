"""A causal convolution of every channel by itself, and which rows of packed documents it may see."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# B batch · S sequence · K taps · T = K - 1 + S, the rows and the K - 1 before them · F channels, in one dim or more


class Streams(NamedTuple):
    """The three arrays that pass through the convolution of a Mamba-2 layer, or what goes with each of them."""

    x: Any
    b: Any
    c: Any


@partial(jax.checkpoint, prevent_cse=False)
def causal_conv(
    x: Float[Array, "B S *F"],
    before: Float[Array, "B history *F"],
    kernel: Float[Array, " K *F"],
    bias: Float[Array, "*F"],
    ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B S *F"]:
    """The convolution of `x`, ahead of which come K - 1 rows `before`; a row sees those of its own document alone.

    `ids` are those of the documents, as `ids_from` makes them. Computed in float32 at least.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    taps, length = kernel.shape[0], x.shape[1]
    rows = jnp.concatenate([before.astype(x.dtype), x], axis=1).astype(wide)
    total, seen = bias.astype(wide), None
    for lag in range(taps):
        first = taps - 1 - lag
        term = rows[:, first : first + length] * kernel[first].astype(wide)
        if ids is not None and lag:
            joined = ids[:, first + 1 : first + 1 + length] == ids[:, first : first + length]
            seen = joined if seen is None else seen & joined
            term = jnp.where(seen.reshape(*seen.shape, *(1,) * (x.ndim - 2)), term, 0)
        total = total + term
    return jax.nn.silu(total).astype(x.dtype)


def ids_from(segments: Int[Array, "B S"], taps: int) -> Int[Array, "B T"]:
    """The ids of rows and of the K - 1 rows before the first, which are of its document."""
    return jnp.pad(segments, ((0, 0), (taps - 1, 0)), mode="edge")


def starts_from(ids: Int[Array, "B T"], taps: int) -> Bool[Array, "B S"]:
    """Whether a row's id is another than that of the row before: a document starts."""
    return ids[:, taps - 1 :] != ids[:, taps - 2 : -1]
