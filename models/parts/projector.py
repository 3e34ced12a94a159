"""The projector from an encoder's width to that of a language model, with a norm before and a squared ReLU inside."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.dims import RESIDUAL, ROWS, Dims
from hetjax.models.parts.mlp import ReLU2MLP
from hetjax.models.parts.norms import RMSNorm

# D width in · E width of the language model


class Projector(nnx.Module):
    """down(relu(up(RMSNorm(x)))²), without biases."""

    def __init__(self, width: int, hidden: int, output_width: int, *, norm_epsilon: float, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, epsilon=norm_epsilon, rngs=rngs)
        self.mlp = ReLU2MLP(width, hidden, output_width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*rows D"], *, given: Dims = RESIDUAL, wanted: Dims = ROWS
    ) -> Float[Array, "*rows E"]:
        """From rows named `given`, unless told of the residual stream, to `wanted`, which leave the module."""
        return self.mlp(self.norm(x), given=given, between=wanted, wanted=wanted)
