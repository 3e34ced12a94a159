"""The two-layer network of an audio encoder's layer, ahead of attention and behind the convolution."""

from __future__ import annotations

from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.conformer.dims import TOKENS
from hetjax.models.parts.linear import Linear
from hetjax.models.scopes import scope

# B batch · C clips a sample · N tokens of a clip · D width · F hidden width


@partial(jax.checkpoint, prevent_cse=False)
def _silu(x: Float[Array, "B C N F"]) -> Float[Array, "B C N F"]:
    return jax.nn.silu(x)


class FeedForward(nnx.Module):
    """down(silu(up(x))), without biases."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = Linear({"embed": width}, {"mlp": hidden}, rngs=rngs)
        self.down = Linear({"mlp": hidden}, {"embed": width}, rngs=rngs)

    @scope("mlp")
    def __call__(self, x: Float[Array, "B C N D"]) -> Float[Array, "B C N D"]:
        """Return what to add, by half, to the residual stream."""
        (up,) = sharded_linear(x, self.up, given=TOKENS, wanted=TOKENS)
        return sharded_linear(_silu(up), self.down, given=TOKENS, wanted=TOKENS)[0]
