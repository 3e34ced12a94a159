"""Rotary position embedding (Su et al. 2021), pairing channel i with channel i + K/2 as Llama does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.checks import check_positive
from hetjax.models.errors import ModelError
from hetjax.models.scopes import scope

# B batch, or 1 where every sample has the same positions · S sequence · H heads · K head width · A axes of a position

RopeTable = tuple[Float[Array, "B S 1 half"], Float[Array, "B S 1 half"]]
"""Cosine and sine of the angle of each channel pair."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Slower rotations of the channels that turn seldom in `original_length` positions, as of Llama 3.1.

    A channel that turns n times in that many positions keeps the share s of its speed f and gets the rest slowed down,

        f * (s + (1 - s) / factor),    s = (n - low_turns) / (high_turns - low_turns), from 0 to 1 at most.
    """

    factor: float
    """How many times slower the slow channels turn."""
    low_turns: float = 1.0
    """Channels of fewer turns are slowed down in full; `low_freq_factor` of Hugging Face."""
    high_turns: float = 4.0
    """Channels of more turns stay as they are; `high_freq_factor` of Hugging Face."""
    original_length: int = 8192
    """Length of the sequences of the first training."""

    def __post_init__(self):
        check_positive(self)
        if self.low_turns >= self.high_turns:
            raise ModelError(
                f"RopeScaling: low_turns < high_turns must hold, but {self.low_turns} >= {self.high_turns}; "
                "change either of the two"
            )

    def slow(self, speeds: Float[Array, " half"]) -> Float[Array, " half"]:
        """Return speeds, in radians a position, after the scaling."""
        turns = speeds * (self.original_length / (2 * math.pi))
        share = jnp.clip((turns - self.low_turns) / (self.high_turns - self.low_turns), 0, 1)
        return speeds * (share + (1 - share) / self.factor)


@scope("rope")
def rope_table(
    positions: Int[Array, "B S"],
    head_dim: int,
    theta: float,
    dtype: jax.typing.DTypeLike = jnp.float32,
    scaling: RopeScaling | None = None,
) -> RopeTable:
    """Return cosine and sine of position * theta^(-2i/K) for each of the K/2 channel pairs, slowed down by `scaling`.

    Computed in float32 at least; `dtype` is that of the activations to rotate.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    exponents = jnp.arange(0, head_dim, 2, dtype=wide) / head_dim
    speeds = jnp.power(jnp.asarray(theta, wide), -exponents)
    if scaling is not None:
        speeds = scaling.slow(speeds)
    angles = positions[:, :, None, None].astype(wide) * speeds
    return jnp.cos(angles), jnp.sin(angles)


@scope("rope")
def axes_rope_table(
    positions: Int[Array, "B S A"],
    axes: Sequence[int],
    exponents: Sequence[float],
    theta: float,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> RopeTable:
    """Return cosine and sine of position * theta^(-exponent) for each channel pair, of the position on the pair's axis.

    A position has A axes, such as time, row and column; `axes` and `exponents` have one a pair. Computed in float32 at
    least; `dtype` is that of the activations to rotate.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    speeds = jnp.power(jnp.asarray(theta, wide), -jnp.asarray(exponents, wide))
    angles = (jnp.take(positions, jnp.asarray(axes), axis=-1).astype(wide) * speeds)[:, :, None]
    return jnp.cos(angles), jnp.sin(angles)


@scope("rope")
def rotate(x: Float[Array, "B S H K"], table: RopeTable) -> Float[Array, "B S H K"]:
    """Turn each channel pair of `x` by its angle in `table`; the result has the dtype of `x`."""
    cos, sin = table
    low, high = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)
