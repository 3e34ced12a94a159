"""A small problem of grouped experts, by which a method is compared with the portable one on the device at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hetjax.models.kernels.grouped_experts import ExpertKernels, ExpertSlots, grouped_experts, grouped_experts_backward
from hetjax.models.kernels.grouped_products import GroupedProducts, Method

# R tokens · K slots of a token · E experts · D width · F hidden width of an expert

_TOKENS, _SLOTS, _EXPERTS, _WIDTH, _HIDDEN = 300, 3, 5, 128, 96

Computation = Callable[..., PyTree[Array]]


def expert_problem(method: Method = "hopper") -> tuple[Computation, Computation, tuple[np.ndarray, ...], float]:
    """Return (values and gradients by the method in bfloat16, by blocks in float32, their arguments, tolerance).

    Some slots are empty, an expert is not asked for, and the hidden width is no multiple of a tile. The tolerance is
    the largest difference of an array's numbers, in units of the largest number.
    """
    random = np.random.default_rng(0)
    experts = np.stack([random.permutation(_EXPERTS + 2)[:_SLOTS] for _ in range(_TOKENS)])
    experts = np.where(experts == 2, _EXPERTS, np.minimum(experts, _EXPERTS)).astype(np.int32)
    shapes = ((_EXPERTS, _WIDTH, _HIDDEN), (_EXPERTS, _HIDDEN, _WIDTH), (_TOKENS, _WIDTH), (_TOKENS, _WIDTH))
    arrays = [(random.normal(size=shape) * 0.3).astype(np.float32) for shape in shapes]
    weights = random.uniform(0.2, 1, (_TOKENS, _SLOTS)).astype(np.float32)
    computations = (partial(_values_and_gradients, *how) for how in ((method, jnp.bfloat16), ("blocks", jnp.float32)))
    return *computations, (*arrays, weights, experts), 0.02


def _values_and_gradients(method: Method, dtype: jnp.dtype, up, down, tokens, gradient, weights, experts):
    up, down, tokens, gradient = (x.astype(jnp.bfloat16).astype(dtype) for x in (up, down, tokens, gradient))
    products = GroupedProducts(method=method, count=_EXPERTS, rows=_TOKENS * _SLOTS)
    problem = products, ExpertKernels((up,), down), tokens, ExpertSlots(experts, weights)
    y, first = grouped_experts(*problem, "relu2")
    return y, grouped_experts_backward(*problem, first, gradient, "relu2")
