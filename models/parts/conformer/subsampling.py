"""Turn frames into tokens: three convolutions of stride 2 over time and frequency, and a linear map."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import constrain, named
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.audio_clips import halved
from hetjax.models.parts.conformer.dims import TOKENS
from hetjax.models.parts.linear import Linear, fan_in_normal

# B batch · C clips a sample · F frames · M mel bins · N tokens of a clip, from F by `halved` three times
# D width · X channels · Y taps = 9, over time first · f m frames and bins ahead of a convolution

TAPS = 3
CELLS = (*TOKENS, None)
"""[samples, clips, frames, bins]."""


class Halving(nnx.Module):
    """relu(pointwise(depthwise(x))), of half as many frames and bins; both maps have biases."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        init = named(fan_in_normal(TAPS**2), None, "channels")
        self.depthwise = nnx.Param(init(rngs.params(), (TAPS**2, channels), jnp.float32))
        zeros = named(nnx.initializers.zeros_init(), "channels")
        self.bias = nnx.Param(zeros(rngs.params(), (channels,), jnp.float32))
        self.pointwise = Linear({"channels": channels}, {"new_channels": channels}, bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "B C f m X"], frames: Int[Array, "B C"]) -> Float[Array, "B C f2 m2 X"]:
        """Return half as many frames and bins; `frames` are the valid ones of each clip after the halving."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        weighted = (part.astype(wide) * tap for part, tap in zip(_windows(x), self.depthwise[...], strict=True))
        mixed = _only_valid(sum(weighted, start=self.bias[...].astype(wide)).astype(x.dtype), frames)
        (new,) = sharded_linear(mixed, self.pointwise, given=CELLS, wanted=CELLS)
        return jax.nn.relu(_only_valid(new, frames))


class Subsampling(nnx.Module):
    """Features of clips as tokens, one for eight frames; all maps have biases.

    Frames past a clip's own are zeros to each convolution, so that padding changes nothing.
    """

    def __init__(self, bins: int, channels: int, width: int, *, rngs: nnx.Rngs):
        self.first = Linear({"taps": TAPS**2}, {"channels": channels}, bias=True, rngs=rngs)
        self.second = Halving(channels, rngs=rngs)
        self.third = Halving(channels, rngs=rngs)
        self.output = Linear({"channels": channels, "bins": bins // 8}, {"embed": width}, bias=True, rngs=rngs)

    def __call__(self, features: Float[Array, "B C F M"], frames: Int[Array, "B C"]) -> Float[Array, "B C N D"]:
        """Return the tokens.

        The backward pass keeps the features alone: channels of all cells would be many times the tokens.
        """

        @partial(jax.checkpoint, prevent_cse=False)
        def run(x: Float[Array, "B C F M"]) -> Float[Array, "B C N D"]:
            count = halved(frames)
            cells = jnp.stack([*_windows(_only_valid(x[..., None], frames)[..., 0])], axis=-1)
            x = jax.nn.relu(_only_valid(sharded_linear(cells, self.first, given=CELLS, wanted=CELLS)[0], count))
            for halving in (self.second, self.third):
                count = halved(count)
                x = halving(x, count)
            x = constrain(x.swapaxes(3, 4), *TOKENS, None, None)
            return sharded_linear(x, self.output, given=TOKENS, wanted=TOKENS)[0]

        return run(features)


def _windows(x: Float[Array, "B C f m *X"]) -> Iterator[Float[Array, "B C f2 m2 *X"]]:
    """What each tap of a convolution of stride 2 and padding 1 reads."""
    rows, columns = halved(x.shape[2]), halved(x.shape[3])
    padded = jnp.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), *[(0, 0)] * (x.ndim - 4)])
    for row in range(TAPS):
        for column in range(TAPS):
            yield padded[:, :, row : row + 2 * rows - 1 : 2, column : column + 2 * columns - 1 : 2]


def _only_valid(x: Float[Array, "B C f m X"], frames: Int[Array, "B C"]) -> Float[Array, "B C f m X"]:
    valid = jnp.arange(x.shape[2]) < frames[..., None]
    return jnp.where(valid[..., None, None], x, 0)
