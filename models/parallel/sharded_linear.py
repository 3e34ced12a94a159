"""Linear maps of one activation whose communication is chosen here: what is split is gathered once, sums are scattered.

The names of all dims say who holds what. With the axes that the layout in force gives them, a device

    forward    gathers the rows of x that the results hold whole, and each kernel over the axes that only split weights;
               multiplies; sums over the axes of the contracted dims, scattered to the rows of the results
    backward   gathers the rows of the results' gradients, and x and the kernels again; multiplies; sums and scatters
               the gradient of x to its rows, and that of each kernel as the optimizer holds it

So a pair of maps, one out to a dim on `tensor` and one back, is Megatron's column and row split (Shoeybi et al.
2019); with rows split between blocks, its sequence parallelism (Korthikanti et al. 2022). Kept for the backward are x
as it came and the kernels as they are stored, nothing that was gathered: the kernels of a layer are whole on a device
only while they are multiplied with (ZeRO-3; Rajbhandari et al. 2020).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from hetjax.models.dims import Dims, Splits, constrain, splits_in_force
from hetjax.models.parallel.dim_axes import Axes, Held, common, flat, held_in
from hetjax.models.remat import PRODUCT, point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One map: its kernel [ins, outs] as programs hold it, its gradient as the optimizer does, and its result."""

    kernel: Held
    gradient: Held
    result: Held


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Who holds what; hashable, for it is static.

    Attributes:
        mesh: the devices.
        rows: how many leading dims of x are rows.
        x: x [rows, ins].
        kernels: the maps.
        rows_over: axes that split the rows while they are multiplied.
        ins_over, outs_over: axes that split the contracted dims, and the dims of the results.
    """

    mesh: Mesh
    rows: int
    x: Held
    kernels: tuple[Kernel, ...]
    rows_over: Axes
    ins_over: Axes
    outs_over: Axes


class LinearMap(Protocol):
    """A linear map, as `hetjax.models.parts.linear.Linear` is one: its weights, and what runs it without a layout.

    Attributes:
        ins, outs: names of the contracted dims, and of those of the result.
        kernel: [*ins, *outs], read as `kernel[...]`.
    """

    ins: tuple[str, ...]
    outs: tuple[str, ...]
    kernel: nnx.Param

    def multiply(self, x: Float[Array, "*batch *ins"]) -> Float[Array, "*batch *outs"]:
        """`x @ kernel`."""

    def shift(self, y: Float[Array, "*batch *outs"]) -> Float[Array, "*batch *outs"]:
        """`y + bias`, if there is one."""


def project(
    x: Float[Array, "*given_ins"], *linears: LinearMap, given: Dims, wanted: Dims
) -> tuple[Float[Array, "*wanted_outs"], ...]:
    """Each linear map of x [given, ins], as [wanted, outs]; `given` and `wanted` name the same rows.

    A dim of the rows that is split further in `given` is gathered before, and one that is in `wanted` scattered
    after. All maps contract the same dims of x.
    """
    splits = splits_in_force()
    plan = None if splits is None else _plan(splits, linears, given, wanted)
    if plan is None:
        results = tuple(linear.multiply(x) for linear in linears)
    else:
        products = _project(plan, x, *(linear.kernel[...] for linear in linears))
        results = tuple(point(product, PRODUCT) for product in products)
    return tuple(linear.shift(constrain(y, *wanted, *linear.outs)) for linear, y in zip(linears, results, strict=True))


def _plan(splits: Splits, linears: tuple[LinearMap, ...], given: Dims, wanted: Dims) -> Plan | None:
    """Who holds what under a layout; None where a rule of the user's makes it another pattern than ours."""
    if splits.weight_axes_of is None:
        return None
    ins = linears[0].ins
    of, of_weight, of_gradient = splits.axes_of, splits.weight_axes_of, splits.gradient_axes_of
    rows = tuple(common(of(a), of(b)) for a, b in zip(given, wanted, strict=True))
    split_ins = tuple(map(of, ins))
    x = Held(stored=(*map(of, given), *split_ins), used=(*rows, *split_ins))
    kernels = []
    for linear in linears:
        names, split_outs = (*ins, *linear.outs), tuple(map(of, linear.outs))
        used = (*split_ins, *split_outs)
        kernels.append(
            Kernel(
                kernel=held_in(of_weight, names, used),
                gradient=held_in(of_gradient, names, used),
                result=Held(stored=(*map(of, wanted), *split_outs), used=(*rows, *split_outs)),
            )
        )
    outs_over = {flat(map(of, linear.outs)) for linear in linears}
    plan = Plan(
        mesh=splits.mesh,
        rows=len(given),
        x=x,
        kernels=tuple(kernels),
        rows_over=flat(rows),
        ins_over=flat(split_ins),
        outs_over=next(iter(outs_over)),
    )
    return plan if len(outs_over) == 1 and _is_ours(plan) else None


def _is_ours(plan: Plan) -> bool:
    """Whether all that is scattered is a sum over what it is scattered over."""
    held = [(plan.x, plan.outs_over)]
    for kernel in plan.kernels:
        held += [(kernel.result, plan.ins_over), (kernel.kernel, plan.rows_over), (kernel.gradient, plan.rows_over)]
    return all(each.is_summed_over(over) for each, over in held)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project(plan: Plan, x, *kernels):
    specs = tuple(kernel.kernel.spec for kernel in plan.kernels)
    results = tuple(kernel.result.spec for kernel in plan.kernels)
    return jax.shard_map(
        partial(_forward_part, plan), mesh=plan.mesh, in_specs=(plan.x.spec, *specs), out_specs=results, check_vma=False
    )(x, *kernels)


def _forward(plan: Plan, x, *kernels):
    return _project(plan, x, *kernels), (x, kernels)


def _backward(plan: Plan, residuals, gradients):
    x, kernels = residuals
    specs = tuple(kernel.kernel.spec for kernel in plan.kernels)
    results = tuple(kernel.result.spec for kernel in plan.kernels)
    of_x, of_kernels = jax.shard_map(
        partial(_backward_part, plan),
        mesh=plan.mesh,
        in_specs=(plan.x.spec, specs, results),
        out_specs=(plan.x.spec, tuple(kernel.gradient.spec for kernel in plan.kernels)),
        check_vma=False,
    )(x, kernels, gradients)
    return of_x.astype(x.dtype), *(d.astype(kernel.dtype) for d, kernel in zip(of_kernels, kernels, strict=True))


_project.defvjp(_forward, _backward)


# ── the part of one device ───────────────────────────────────────────────────────────────────────────


def _forward_part(plan: Plan, x, *kernels):
    x = plan.x.gather(x)
    contracted = x.ndim - plan.rows
    return tuple(
        held.result.sum(jnp.tensordot(x, held.kernel.gather(kernel), axes=contracted), plan.ins_over)
        for held, kernel in zip(plan.kernels, kernels, strict=True)
    )


def _backward_part(plan: Plan, x, kernels, gradients):
    x = plan.x.gather(x)
    of_kernels, of_x = [], None
    for held, kernel, gradient in zip(plan.kernels, kernels, gradients, strict=True):
        gradient = held.result.gather(gradient)
        rows, outs = list(range(plan.rows)), gradient.ndim - plan.rows
        of_kernels.append(held.gradient.sum(jnp.tensordot(x, gradient, axes=(rows, rows)), plan.rows_over))
        last = [list(range(-outs, 0))] * 2
        part = jnp.tensordot(gradient, held.kernel.gather(kernel), axes=last)
        of_x = part if of_x is None else of_x + part
    return plan.x.sum(of_x, plan.outs_over), tuple(of_kernels)
