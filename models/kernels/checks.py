"""Compare each kernel for special devices with the portable path: a small problem, computed both ways on a device.

A kernel that comes to `KERNELS` is compared before the first step of a run on devices that have it, and replaced by
the portable path where it fails or differs (`hetjax.execution.kernel_choice`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hetjax.models.kernels.attention import attend
from hetjax.models.kernels.attention_mask import Visible, causal
from hetjax.models.kernels.expert_check import expert_problem
from hetjax.models.kernels.flash_attention import flash_attention
from hetjax.models.kernels.fused_attention import compute_capability, fused_attention
from hetjax.models.kernels.hopper_products import can_multiply
from hetjax.models.kernels.triton_attention import TRITON

CUDNN_ATTENTION = "cuDNN attention"
TRITON_ATTENTION = "Triton attention"
HOPPER_EXPERTS = "Hopper experts"


class Problem(NamedTuple):
    """The same computed in two ways.

    Attributes:
        kernel, portable: functions of the arguments.
        arguments: arrays on the host.
        tolerance: the largest difference of an array's numbers, in units of the largest number.
    """

    kernel: Callable[..., PyTree[Array]]
    portable: Callable[..., PyTree[Array]]
    arguments: tuple[np.ndarray, ...]
    tolerance: float


class KernelCheck(NamedTuple):
    """A kernel by the name that layers ask for it, the devices that have it, and a problem to try it on."""

    name: str
    runs_on: Callable[[jax.Device], bool]
    problem: Callable[[], Problem]


@functools.cache
def difference(check: KernelCheck, device: jax.Device) -> str | None:
    """Return what is wrong with a kernel on a device; None where it computes what the portable path does.

    Computed once a process for each kernel and device.
    """
    problem = check.problem()
    arguments = jax.device_put(problem.arguments, device)
    try:
        got = jax.device_get(jax.jit(problem.kernel)(*arguments))
    except Exception as error:  # whatever a compiler, a driver or a device has to say of it
        return f"it fails with {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    want = jax.device_get(jax.jit(problem.portable)(*arguments))
    errors = [_error(np.float64(a), np.float64(b)) for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True)]
    worst = max(errors)
    if worst <= problem.tolerance:
        return None
    return f"it differs from the portable path by {worst:.2g} of the largest number, where {problem.tolerance:g} may be"


def _error(got: np.ndarray, want: np.ndarray) -> float:
    error = np.abs(got - want).max() / np.abs(want).max()
    return float(error) if np.isfinite(error) else float("inf")


def _attention(run: Callable[..., Array], width: int, *, packed: bool) -> Problem:
    """Values and gradients of causal attention in bfloat16: the weights of its scores are rounded to 8 bits."""
    random = np.random.default_rng(0)
    shapes = {"query": (2, 200, 4, width), "key": (2, 200, 2, width), "value": (2, 200, 2, width)}
    arrays = [random.normal(size=shape).astype(np.float32) for shape in (*shapes.values(), shapes["query"])]
    ids = np.sort(random.integers(0, 4, (2, 200)), axis=1).astype(np.int32)

    def both(run, dtype, query, key, value, gradient, ids):
        rounded = [x.astype(jnp.bfloat16).astype(dtype) for x in (query, key, value, gradient)]
        output, vjp = jax.vjp(partial(run, segments=ids if packed else None), *rounded[:3])
        return output, vjp(rounded[3])

    def portable(query, key, value, segments):
        return attend(query, key, value, causal(query.shape[1]), segments)

    return Problem(partial(both, run, jnp.bfloat16), partial(both, portable, jnp.float32), (*arrays, ids), 0.02)


def _cudnn(query, key, value, segments):
    return fused_attention(query, key, value, causal=True)


def _triton(query, key, value, segments):
    return flash_attention(TRITON, query, key, value, Visible(causal(query.shape[1]), segments, segments))


def _is_recent_nvidia(device: jax.Device) -> bool:
    return compute_capability(device) >= (8, 0)


KERNELS = (
    KernelCheck(CUDNN_ATTENTION, _is_recent_nvidia, partial(_attention, _cudnn, 128, packed=False)),
    # A width that is no power of two, and a length that blocks do not divide.
    KernelCheck(TRITON_ATTENTION, _is_recent_nvidia, partial(_attention, _triton, 80, packed=True)),
    KernelCheck(HOPPER_EXPERTS, partial(can_multiply, jnp.bfloat16), lambda: Problem(*expert_problem())),
)
