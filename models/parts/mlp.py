"""The two-layer networks between attentions: SwiGLU, squared ReLU and GELU.

The backward pass keeps the inputs of the nonlinearity and computes it again: it is elementwise.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.dims import RESIDUAL, SEQUENCE, Dims
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.linear import Linear
from hetjax.models.scopes import scope

# B batch · S sequence · D width in · E width out · F hidden width

Gelu = Literal["exact", "tanh", "sigmoid"]
"""x times a normal law's share below x: exact, or approximated by a tanh, or by sigmoid(1.702 x) as in CLIP."""


@partial(jax.checkpoint, prevent_cse=False)
def _swiglu(gate: Float[Array, "B S F"], up: Float[Array, "B S F"]) -> Float[Array, "B S F"]:
    return jax.nn.silu(gate) * up


@partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
def _gelu(x: Float[Array, "B S F"], form: Gelu) -> Float[Array, "B S F"]:
    return x * jax.nn.sigmoid(1.702 * x) if form == "sigmoid" else jax.nn.gelu(x, approximate=form == "tanh")


@partial(jax.checkpoint, prevent_cse=False)
def _relu2(x: Float[Array, "*tokens F"]) -> Float[Array, "*tokens F"]:
    return jnp.square(jax.nn.relu(x))


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)), without biases (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.gate = Linear({"embed": width}, {"mlp": hidden}, rngs=rngs)
        self.up = Linear({"embed": width}, {"mlp": hidden}, rngs=rngs)
        self.down = Linear({"mlp": hidden}, {"embed": width}, rngs=rngs)

    @scope("mlp")
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Return the network of each token of the residual stream, in the dtype of x and kernels."""
        gate, up = sharded_linear(x, self.gate, self.up, given=RESIDUAL, wanted=SEQUENCE)
        return sharded_linear(_swiglu(gate, up), self.down, given=SEQUENCE, wanted=RESIDUAL)[0]


class ReLU2MLP(nnx.Module):
    """down(relu(up(x))²), without biases (So et al. 2021); back to the width of x, or to another `output_width`."""

    def __init__(self, width: int, hidden: int, output_width: int | None = None, *, rngs: nnx.Rngs):
        self.up = Linear({"embed": width}, {"mlp": hidden}, rngs=rngs)
        self.down = Linear({"mlp": hidden}, {"embed": output_width or width}, rngs=rngs)

    @scope("mlp")
    def __call__(
        self, x: Float[Array, "*tokens D"], *, given: Dims = RESIDUAL, between: Dims = SEQUENCE, wanted: Dims = RESIDUAL
    ) -> Float[Array, "*tokens E"]:
        """Return the network of each token; the last three name the leading dims of x, hidden layer and result."""
        (up,) = sharded_linear(x, self.up, given=given, wanted=between)
        return sharded_linear(_relu2(up), self.down, given=between, wanted=wanted)[0]


class GeluMLP(nnx.Module):
    """down(gelu(up(x))), with biases (Hendrycks and Gimpel 2016)."""

    def __init__(self, width: int, hidden: int, output_width: int, *, gelu: Gelu = "exact", rngs: nnx.Rngs):
        self.gelu = gelu
        self.up = Linear({"embed": width}, {"mlp": hidden}, bias=True, rngs=rngs)
        self.down = Linear({"mlp": hidden}, {"embed": output_width}, bias=True, rngs=rngs)

    @scope("mlp")
    def __call__(self, x: Float[Array, "B S D"], wanted: Dims = RESIDUAL) -> Float[Array, "B S E"]:
        """Return the network of each token of the residual stream; `wanted` names the leading dims of the result."""
        (up,) = sharded_linear(x, self.up, given=RESIDUAL, wanted=SEQUENCE)
        return sharded_linear(_gelu(up, self.gelu), self.down, given=SEQUENCE, wanted=wanted)[0]
