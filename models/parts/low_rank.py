"""A map of low rank beside a frozen linear map: LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation")."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from hetjax.models.dims import named
from hetjax.models.parts.linear import Linear

RANK = "rank"
"""The dim name of the rank; no layout splits it."""


class LowRank(nnx.Module):
    """scale * b(a(x)), for a linear map whose kernel has the shape (*layers, *ins, *outs).

    `a` maps to the rank and `b` from it; both are stacked over the dims of layers that lead the kernel. `a` begins
    uniform within 1 / sqrt(product of ins), as PEFT has it, and `b` with zeros, so that nothing is added at first.
    """

    def __init__(self, linear: Linear, *, rank: int, scale: float, rngs: nnx.Rngs):
        self.scale = scale
        shape, dims = linear.kernel.get_value().shape, linear.kernel.get_metadata("out_sharding")
        layers = len(shape) - len(linear.ins) - len(linear.outs)
        ins = dict(zip(linear.ins, shape[layers:], strict=False))
        outs = dict(zip(linear.outs, shape[layers + len(ins) :], strict=True))
        bound = 1 / math.sqrt(math.prod(ins.values()))
        self.a = _stacked(Linear(ins, {RANK: rank}, rngs=rngs), shape[:layers], dims[:layers], _within(bound), rngs)
        zeros = nnx.initializers.zeros_init()
        self.b = _stacked(Linear({RANK: rank}, outs, rngs=rngs), shape[:layers], dims[:layers], zeros, rngs)


def _within(bound: float) -> nnx.Initializer:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _stacked(
    linear: Linear, layers: tuple[int, ...], dims: tuple[str | None, ...], init: nnx.Initializer, rngs: nnx.Rngs
) -> Linear:
    """The map with a fresh kernel that leads with dims of layers."""
    shape = (*layers, *linear.kernel.get_value().shape)
    linear.kernel = nnx.Param(named(init, *dims, *linear.ins, *linear.outs)(rngs.params(), shape, jnp.float32))
    return linear
