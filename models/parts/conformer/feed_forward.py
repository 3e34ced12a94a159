"""The two-layer networks of the encoder of sound: between attention and convolution, and behind the last layer."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.parts.conformer.rows import ROWS
from models.parts.linear import Linear
from models.parts.norms import RMSNorm
from models.parts.project import project

# B batch · C clips a sample · N tokens of a clip · D width · F hidden width · E output width


@partial(jax.checkpoint, prevent_cse=False)
def _silu(x: Float[Array, "B C N F"]) -> Float[Array, "B C N F"]:
    return jax.nn.silu(x)


@partial(jax.checkpoint, prevent_cse=False)
def _relu2(x: Float[Array, "B C N F"]) -> Float[Array, "B C N F"]:
    return jnp.square(jax.nn.relu(x))


class FeedForward(nnx.Module):
    """down(silu(up(x))), without biases."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = Linear({"embed": width}, {"mlp": hidden}, rngs=rngs)
        self.down = Linear({"mlp": hidden}, {"embed": width}, rngs=rngs)

    def __call__(self, x: Float[Array, "B C N D"]) -> Float[Array, "B C N D"]:
        (up,) = project(x, self.up, given=ROWS, wanted=ROWS)
        return project(_silu(up), self.down, given=ROWS, wanted=ROWS)[0]


class Projector(nnx.Module):
    """down(relu(up(norm(x)))²) to the width of a language model, without biases."""

    def __init__(self, width: int, hidden: int, output_width: int, *, epsilon: float, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, epsilon=epsilon, rngs=rngs)
        self.up = Linear({"embed": width}, {"mlp": hidden}, rngs=rngs)
        self.down = Linear({"mlp": hidden}, {"embed": output_width}, rngs=rngs)

    def __call__(self, x: Float[Array, "B C N D"]) -> Float[Array, "B C N E"]:
        (up,) = project(self.norm(x), self.up, given=ROWS, wanted=ROWS)
        return project(_relu2(up), self.down, given=ROWS, wanted=ROWS)[0]
