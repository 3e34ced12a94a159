"""Embed a fused sequence: its tokens by a table, with those of encoders in the positions of some."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, constrain
from hetjax.models.errors import ModelError
from hetjax.models.parallel.sharded_embedding import sharded_embedding
from hetjax.models.parts.scatter import scatter_tokens
from hetjax.models.scopes import scope

# B batch · S fused sequence · N encoder tokens a sample · D width · V vocabulary

Encoded = tuple[Float[Array, "B N D"] | None, Int[Array, "B N"] | None]
"""Tokens of an encoder and the position that each takes; both None where there are none."""


@scope("embedding")
def embed_sequence(
    table: Float[Array, "V D"], tokens: Int[Array, "B S"], encoded: Mapping[str, Encoded], *, owner: str
) -> Float[Array, "B S D"]:
    """Return table[tokens], with encoder tokens in their positions; one outside of the sequence is dropped.

    `encoded` has them by kind, such as "image". Raises ModelError, on behalf of `owner`, for tokens that are no
    integers, and where a kind lacks tokens or positions, or has not as many of both.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ModelError(f"{owner}: tokens are {tokens.dtype}; give integers")
    x = constrain(sharded_embedding(table, tokens), *RESIDUAL, "embed")
    for kind, (new, positions) in encoded.items():
        if (new is None) != (positions is None):
            raise ModelError(f"{owner}: give both of {kind}_tokens and {kind}_positions, or neither")
        if new is None:
            continue
        if new.shape[:2] != positions.shape:
            raise ModelError(
                f"{owner}: {new.shape[1]} {kind}_tokens a sample, but {positions.shape[1]} {kind}_positions for them; "
                "each encoder token needs the position that it takes"
            )
        x = constrain(scatter_tokens(x, new, positions), *RESIDUAL, "embed")
    return x
