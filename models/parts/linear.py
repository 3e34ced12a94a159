"""Map linearly between named dims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.dims import named

if TYPE_CHECKING:
    from hetjax.models.parallel.sharded_linear import LowRankMap


def fan_in_normal(fan_in: int) -> nnx.Initializer:
    """Return an initializer: a truncated normal of variance 1 / fan_in."""
    # Cutting a normal at two sigma shrinks its deviation to 0.8796 of the original.
    return nnx.initializers.truncated_normal(1 / math.sqrt(fan_in) / 0.87962566103423978)


class Linear(nnx.Module):
    """`x @ kernel (+ bias)`, contracting the trailing dims of `x` named by `ins` into those named by `outs`.

    The kernel has shape (*ins, *outs) and enters the contraction as it is stored, so that a backward
    pass keeps a reference to the weight and no copy. Initialized from a truncated normal of variance
    1 / (product of ins), in float32; the computation follows the dtype of `x` and kernel. Where a layout splits
    dims, `hetjax.models.parallel.sharded_linear` runs it; called, all communication is the compiler's choice. A bias of
    which nothing depends, but for rounding, is held with `fixed_bias`: its gradient is exactly zero then.
    `hetjax.models.lora` may put a low-rank map beside the kernel, whose result is added.
    """

    def __init__(
        self,
        ins: Mapping[str, int],
        outs: Mapping[str, int],
        *,
        bias: bool = False,
        fixed_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        shape = (*ins.values(), *outs.values())
        self.ins, self.outs, self.fixed_bias = tuple(ins), tuple(outs), fixed_bias
        init = named(fan_in_normal(math.prod(ins.values())), *ins, *outs)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.lora: LowRankMap | None = None
        if not bias:
            self.bias = None
        else:
            # A vector: small, so that it stays whole where its dim would split it over devices that hold other tokens.
            zeros = named(nnx.initializers.zeros_init(), *("width" if dim == "embed" else dim for dim in outs))
            self.bias = nnx.Param(zeros(rngs.params(), tuple(outs.values()), jnp.float32))

    def __call__(self, x: Float[Array, "*batch *ins"]) -> Float[Array, "*batch *outs"]:
        """Return `x @ kernel (+ bias)`, with what a low-rank map adds."""
        y = self.multiply(x)
        if self.lora is not None:
            y = y + self.lora.b(self.lora.scale * self.lora.a(x))
        return self.shift(y)

    def multiply(self, x: Float[Array, "*batch *ins"]) -> Float[Array, "*batch *outs"]:
        """Return `x @ kernel`."""
        return jnp.tensordot(x, self.kernel[...], axes=len(self.ins))

    def shift(self, y: Float[Array, "*batch *outs"]) -> Float[Array, "*batch *outs"]:
        """Return `y + bias`, if there is one."""
        if self.bias is None:
            return y
        return y + (jax.lax.stop_gradient(self.bias[...]) if self.fixed_bias else self.bias[...])

    @property
    def dtype(self) -> jax.typing.DTypeLike:
        """That of the kernel."""
        return self.kernel[...].dtype
