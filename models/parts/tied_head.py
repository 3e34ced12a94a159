"""Compute logits by the embedding's own table (Press and Wolf 2017)."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hetjax.models.dims import RESIDUAL, SEQUENCE
from hetjax.models.parallel.sharded_linear import sharded_linear

# B batch · S sequence · D width · V vocabulary


@dataclasses.dataclass(frozen=True)
class _Transposed:
    """A table [V, D] as `sharded_linear` takes a linear map from D to V."""

    kernel: Float[Array, "D V"]
    ins: ClassVar[tuple[str, ...]] = ("embed",)
    outs: ClassVar[tuple[str, ...]] = ("vocab",)
    lora: ClassVar[None] = None

    def multiply(self, x: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Return x times the table, transposed."""
        return jnp.tensordot(x, self.kernel, axes=1)

    def shift(self, y: Float[Array, "B S V"]) -> Float[Array, "B S V"]:
        """Return y: there is no bias."""
        return y


# The backward is to keep the table that is there anyway, and no transpose of it.
@partial(jax.checkpoint, prevent_cse=False)
def tied_head(x: Float[Array, "B S D"], table: Float[Array, "V D"]) -> Float[Array, "B S V"]:
    """Return the product of each token of the residual stream with each embedding of a table."""
    return sharded_linear(x, _Transposed(table.T), given=RESIDUAL, wanted=SEQUENCE)[0]
