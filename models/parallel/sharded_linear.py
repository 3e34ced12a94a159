"""Multiply one activation by split kernels: what is split is gathered once, and sums are scattered.

The names of all dims say which device has which part. With the axes that the layout in force gives them, a device

    forward    gathers x over the axes that split it further than the results, and each kernel over the axes that only
               split weights; multiplies; sums over the axes of the contracted dims, scattered as the results are split
    backward   gathers the results' gradients, and x and the kernels again; multiplies; sums and scatters the gradient
               of x as x is split, and that of each kernel as the optimizer holds it

So a pair of maps, one out to a dim on `tensor` and one back, is Megatron's column and row split (Shoeybi et al.
2019); with the sequence split between blocks, its sequence parallelism (Korthikanti et al. 2022). Kept for the
backward are x as it came and the kernels as they are stored, nothing that was gathered: the kernels of a layer are
whole on a device only while they are multiplied with (ZeRO-3; Rajbhandari et al. 2020). Of a kernel that nothing
differentiates by, as a frozen one, the gradient is not computed; where no kernel of a call has one, x is not kept.

A map may have a low-rank one beside it (`hetjax.models.parts.low_rank`): its two products run in the same way, and
what is sent between devices for them is as wide as the rank.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import Mesh
from jaxtyping import Array, Float

from hetjax.models.dims import Dims, constrain
from hetjax.models.parallel.dim_axes import DimAxes, common_prefix, gradient_axes, unique_axes, weight_axes
from hetjax.models.parallel.layout_in_force import Axes, Splits, splits_in_force
from hetjax.models.remat import PRODUCT, point


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSharding:
    """The axes of one map.

    Attributes:
        kernel: those of the kernel [*ins, *outs] as programs hold it.
        gradient: those of its gradient as the optimizer holds it.
        result: those of the result [*leading, *outs].
    """

    kernel: DimAxes
    gradient: DimAxes
    result: DimAxes


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSharding:
    """The static facts of linear maps under a layout; hashable.

    Attributes:
        mesh: the devices.
        leading: how many dims of x lead, and are not contracted.
        x: the axes of x [*leading, *ins].
        kernels: those of each map.
        leading_over: axes that split the leading dims while x is multiplied.
        ins_over, outs_over: axes that split the contracted dims, and the dims of the results.
    """

    mesh: Mesh
    leading: int
    x: DimAxes
    kernels: tuple[KernelSharding, ...]
    leading_over: Axes
    ins_over: Axes
    outs_over: Axes


class LowRankMap(Protocol):
    """A low-rank map beside a linear one, as `hetjax.models.parts.low_rank.LowRank` is one: b(scale * a(x)).

    Attributes:
        a, b: linear maps to the rank, and from it.
        scale: the factor.
    """

    a: LinearMap
    b: LinearMap
    scale: float


class LinearMap(Protocol):
    """A linear map, as `hetjax.models.parts.linear.Linear` is one: its weights, and what runs it without a layout.

    Attributes:
        ins, outs: names of the contracted dims, and of those of the result.
        kernel: [*ins, *outs], read as `kernel[...]`.
        lora: a map whose result is added; None for none.
    """

    ins: tuple[str, ...]
    outs: tuple[str, ...]
    kernel: nnx.Param
    lora: LowRankMap | None

    def multiply(self, x: Float[Array, "*batch *ins"]) -> Float[Array, "*batch *outs"]:
        """Return `x @ kernel`."""

    def shift(self, y: Float[Array, "*batch *outs"]) -> Float[Array, "*batch *outs"]:
        """Return `y + bias`, if there is one."""


def sharded_linear(
    x: Float[Array, "*given_ins"], *linears: LinearMap, given: Dims, wanted: Dims
) -> tuple[Float[Array, "*wanted_outs"], ...]:
    """Return each linear map of x [*given, *ins], as [*wanted, *outs], in the dtype of x and kernels.

    `given` and `wanted` name the same leading dims. One that is split further in `given` is gathered before, and one
    that is in `wanted` scattered after. All maps contract the same dims of x. Where no layout is in force, or a rule of
    the user's makes it another pattern than that of this file, the compiler chooses the communication.
    """
    results = _add_low_rank(_products(x, linears, given, wanted), x, linears, given, wanted)
    return tuple(linear.shift(y) for linear, y in zip(linears, results, strict=True))


def _products(x: Array, linears: tuple[LinearMap, ...], given: Dims, wanted: Dims) -> list[Array]:
    splits = splits_in_force()
    sharding = None if splits is None else _sharding_of(splits, linears, given, wanted)
    if sharding is None:
        results = [linear.multiply(x) for linear in linears]
    else:
        products = _sharded_linear(sharding, x, *(linear.kernel[...] for linear in linears))
        results = [point(product, PRODUCT) for product in products]
    return [constrain(y, *wanted, *linear.outs) for linear, y in zip(linears, results, strict=True)]


def _add_low_rank(
    results: list[Array], x: Array, linears: tuple[LinearMap, ...], given: Dims, wanted: Dims
) -> list[Array]:
    """The results, with those of the low-rank maps added; between their two products, positions are split the most."""
    adapted = [i for i, linear in enumerate(linears) if linear.lora is not None]
    if not adapted:
        return results
    low = [linears[i].lora for i in adapted]
    between = tuple(map(_split_more, given, wanted))
    for i, each, inner in zip(adapted, low, _products(x, tuple(each.a for each in low), given, between), strict=True):
        (outer,) = _products(each.scale * inner, (each.b,), between, wanted)
        results[i] = results[i] + outer
    return results


def _split_more(one: str | None, other: str | None) -> str | None:
    splits = splits_in_force()
    return other if splits and len(splits.axes_of(other)) > len(splits.axes_of(one)) else one


def _sharding_of(splits: Splits, linears: tuple[LinearMap, ...], given: Dims, wanted: Dims) -> LinearSharding | None:
    """The sharding under a layout; None where a rule of the user's makes it another pattern than ours."""
    if splits.weight_axes_of is None:
        return None
    ins = linears[0].ins
    of, of_weight = splits.axes_of, splits.weight_axes_of
    leading = tuple(common_prefix(of(a), of(b)) for a, b in zip(given, wanted, strict=True))
    split_ins = tuple(map(of, ins))
    x = DimAxes(stored=(*map(of, given), *split_ins), used=(*leading, *split_ins))
    kernels, over = [], unique_axes(leading)
    for linear in linears:
        names, split_outs = (*ins, *linear.outs), tuple(map(of, linear.outs))
        used = (*split_ins, *split_outs)
        kernels.append(
            KernelSharding(
                kernel=weight_axes(of_weight, names, used),
                gradient=gradient_axes(splits.gradient_axes_of(names, linear.kernel.shape), used, over),
                result=DimAxes(stored=(*map(of, wanted), *split_outs), used=(*leading, *split_outs)),
            )
        )
    outs_over = {unique_axes(map(of, linear.outs)) for linear in linears}
    sharding = LinearSharding(
        mesh=splits.mesh,
        leading=len(given),
        x=x,
        kernels=tuple(kernels),
        leading_over=over,
        ins_over=unique_axes(split_ins),
        outs_over=next(iter(outs_over)),
    )
    return sharding if len(outs_over) == 1 and _is_ours(sharding) else None


def _is_ours(sharding: LinearSharding) -> bool:
    """Whether all that is scattered is a sum over what it is scattered over."""
    leading = sharding.leading_over
    scattered = [(sharding.x, sharding.outs_over)]
    for kernel in sharding.kernels:
        scattered += [(kernel.result, sharding.ins_over), (kernel.kernel, leading), (kernel.gradient, leading)]
    return all(axes.can_scatter(over) for axes, over in scattered)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sharded_linear(sharding: LinearSharding, x, *kernels):
    specs = tuple(kernel.kernel.spec for kernel in sharding.kernels)
    results = tuple(kernel.result.spec for kernel in sharding.kernels)
    return jax.shard_map(
        partial(_forward_part, sharding),
        mesh=sharding.mesh,
        in_specs=(sharding.x.spec, *specs),
        out_specs=results,
        check_vma=False,
    )(x, *kernels)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Residuals:
    """What the backward takes.

    Attributes:
        x: the activation, None where no gradient of a kernel is asked for.
        kernels: the kernels as they are stored.
        dtype: that of x.
        asked: of which kernels the gradient is asked for.
    """

    x: Array | None
    kernels: tuple[Array, ...]
    dtype: jnp.dtype = dataclasses.field(metadata={"static": True})
    asked: tuple[bool, ...] = dataclasses.field(metadata={"static": True})


def _forward(sharding: LinearSharding, x: CustomVJPPrimal, *kernels: CustomVJPPrimal):
    values, asked = tuple(kernel.value for kernel in kernels), tuple(kernel.perturbed for kernel in kernels)
    kept = _Residuals(x=x.value if any(asked) else None, kernels=values, dtype=x.value.dtype, asked=asked)
    return _sharded_linear(sharding, x.value, *values), kept


def _backward(sharding: LinearSharding, residuals: _Residuals, gradients):
    gradients = tuple(jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g for g in gradients)
    asked = residuals.asked
    specs = tuple(kernel.kernel.spec for kernel in sharding.kernels)
    results = tuple(kernel.result.spec for kernel in sharding.kernels)
    of_x, of_kernels = jax.shard_map(
        partial(_backward_part, sharding, asked),
        mesh=sharding.mesh,
        in_specs=(None if residuals.x is None else sharding.x.spec, specs, results),
        out_specs=(
            sharding.x.spec,
            tuple(axes.gradient.spec if own else None for axes, own in zip(sharding.kernels, asked, strict=True)),
        ),
        check_vma=False,
    )(residuals.x, residuals.kernels, gradients)
    cast = (d if d is None else d.astype(kernel.dtype) for d, kernel in zip(of_kernels, residuals.kernels, strict=True))
    return of_x.astype(residuals.dtype), *cast


_sharded_linear.defvjp(_forward, _backward, symbolic_zeros=True)


# ── the part of one device ───────────────────────────────────────────────────────────────────────────


def _forward_part(sharding: LinearSharding, x, *kernels):
    x = sharding.x.gather(x)
    contracted = x.ndim - sharding.leading
    return tuple(
        axes.result.sum(jnp.tensordot(x, axes.kernel.gather(kernel), axes=contracted), sharding.ins_over)
        for axes, kernel in zip(sharding.kernels, kernels, strict=True)
    )


def _backward_part(sharding: LinearSharding, asked: tuple[bool, ...], x, kernels, gradients):
    x = None if x is None else sharding.x.gather(x)
    of_kernels, of_x = [], None
    for axes, own, kernel, gradient in zip(sharding.kernels, asked, kernels, gradients, strict=True):
        gradient = axes.result.gather(gradient)
        leading, outs = list(range(sharding.leading)), gradient.ndim - sharding.leading
        of_kernel = jnp.tensordot(x, gradient, axes=(leading, leading)) if own else None
        of_kernels.append(axes.gradient.sum(of_kernel, sharding.leading_over) if own else None)
        last = [list(range(-outs, 0))] * 2
        part = jnp.tensordot(gradient, axes.kernel.gather(kernel), axes=last)
        of_x = part if of_x is None else of_x + part
    return sharding.x.sum(of_x, sharding.outs_over), tuple(of_kernels)
