"""The projector from an encoder's width to that of a language model, with a norm before and a squared ReLU inside."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from models.dims import ROWS
from models.parts.mlp import ReLU2MLP
from models.parts.norms import RMSNorm

# B batch · S rows · D width in · E width of the language model


class Projector(nnx.Module):
    """down(relu(up(RMSNorm(x)))²), without biases."""

    def __init__(self, width: int, hidden: int, output_width: int, *, norm_epsilon: float, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, epsilon=norm_epsilon, rngs=rngs)
        self.mlp = ReLU2MLP(width, hidden, output_width, rngs=rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S E"]:
        """From rows of the residual stream to whole rows, which leave the module."""
        return self.mlp(self.norm(x), wanted=ROWS)
