"""Project from an encoder's width to that of a language model, with a norm before and a squared ReLU inside."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.dims import RESIDUAL, SEQUENCE, Dims
from hetjax.models.parts.mlp import ReLU2MLP
from hetjax.models.parts.norms import RMSNorm
from hetjax.models.scopes import scope

# D width in · E width of the language model


class Projector(nnx.Module):
    """down(relu(up(RMSNorm(x)))²), without biases."""

    def __init__(self, width: int, hidden: int, output_width: int, *, norm_epsilon: float, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, epsilon=norm_epsilon, rngs=rngs)
        self.mlp = ReLU2MLP(width, hidden, output_width, rngs=rngs)

    @scope("projector")
    def __call__(
        self, x: Float[Array, "*tokens D"], *, given: Dims = RESIDUAL, wanted: Dims = SEQUENCE
    ) -> Float[Array, "*tokens E"]:
        """Return the tokens of the language model's width; `given` and `wanted` name leading dims before and after."""
        return self.mlp(self.norm(x), given=given, between=wanted, wanted=wanted)
