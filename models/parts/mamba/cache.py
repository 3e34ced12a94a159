"""What a Mamba-2 layer carries from one call to the next in generation; its size does not grow with the sequence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hetjax.models.dims import Dims
from hetjax.models.kernels.causal_conv import Streams
from hetjax.models.parts.mamba.config import MambaConfig

# B batch · K taps of the convolution · H heads · P head width · G groups · N state


class MambaCache(NamedTuple):
    """The carry of one layer, or of a stack of layers with a leading dim.

    Attributes:
        conv: the last K - 1 inputs of the convolution, zeros before the first; [B, K-1, ...] each.
        state: the state after the last token, in float32 at least.
    """

    conv: Streams
    state: Float[Array, "*layers B H P N"]

    @classmethod
    def empty(
        cls, config: MambaConfig, batch: int, dtype: jax.typing.DTypeLike, *, layers: int | None = None
    ) -> MambaCache:
        """Return the carry before the first token; `dtype` is that of activations."""
        lead = (batch,) if layers is None else (layers, batch)
        heads, vectors = (config.heads, config.head_dim), (config.groups, config.state)
        inputs = config.conv_kernel - 1
        conv = Streams(*(jnp.zeros((*lead, inputs, *dims), dtype) for dims in (heads, vectors, vectors)))
        return cls(conv, jnp.zeros((*lead, *heads, config.state), jnp.promote_types(dtype, jnp.float32)))

    @classmethod
    def dims(cls, *, layers: bool = False) -> MambaCache:
        """Return the dim names of each array."""
        lead: Dims = ("layers", "batch") if layers else ("batch",)
        vectors = (*lead, None, "kv_heads", None)
        return cls(Streams((*lead, None, "heads", "head_dim"), vectors, vectors), (*lead, "heads", "head_dim", None))
