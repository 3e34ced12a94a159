"""The rows of a fused sequence: the embeddings of its tokens, with those of encoders in the places of some."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, constrain
from hetjax.models.errors import ModelError
from hetjax.models.parallel.sharded_embedding import look_up
from hetjax.models.parts.scatter import scatter_tokens

# B batch · S fused sequence · N encoder tokens a sample · D width · V vocabulary

Encoded = tuple[Float[Array, "B N D"] | None, Int[Array, "B N"] | None]
"""Tokens of an encoder and the row that each takes; both None where there are none."""


def fuse(
    table: Float[Array, "V D"], tokens: Int[Array, "B S"], encoded: Mapping[str, Encoded], *, owner: str
) -> Float[Array, "B S D"]:
    """table[tokens], with encoder tokens in their rows; one whose row is outside of the sequence is dropped.

    `encoded` has them by kind, such as "image". Raises ModelError, on behalf of `owner`, for tokens that are no
    integers, and where a kind lacks tokens or rows, or has not as many of both.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ModelError(f"{owner}: tokens are {tokens.dtype}; give integers")
    x = constrain(look_up(table, tokens), *RESIDUAL, "embed")
    for kind, (new, rows) in encoded.items():
        if (new is None) != (rows is None):
            raise ModelError(f"{owner}: give both of {kind}_tokens and {kind}_positions, or neither")
        if new is None:
            continue
        if new.shape[:2] != rows.shape:
            raise ModelError(
                f"{owner}: {new.shape[1]} {kind}_tokens a sample, but {rows.shape[1]} rows for them; each encoder "
                "token needs the row that it takes"
            )
        x = constrain(scatter_tokens(x, new, rows), *RESIDUAL, "embed")
    return x
