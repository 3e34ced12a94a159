"""Compute a mixture of experts over many devices: tokens are sent to the experts, and results back.

Where the layout in force splits the dim "experts", each device has some of the experts, sends its tokens to
the devices whose experts they ask for, and gets the results back (`hetjax.models.parallel.token_exchange`): a token's
D values travel twice in the forward pass and twice in the backward pass. No weight travels. Where "mlp" is split too,
each device computes a part of every expert's hidden values, and the results are summed once they are back.

Tokens travel in rounds: the first has room for what usually arrives, further ones take place as long as any device has
tokens left (`hetjax.models.parallel.token_rounds`).

Forward and backward are one `shard_map` each; the backward keeps the tokens that the experts got in the first round and
what their first products gave, and sends those of further rounds once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from hetjax.models.kernels.grouped_experts import (
    Activation,
    ExpertKernels,
    ExpertSlots,
    grouped_experts,
    grouped_experts_backward,
)
from hetjax.models.parallel.expert_round import Arrived, backward_round, forward_round, recompute_round
from hetjax.models.parallel.expert_sharding import ExpertSharding, expert_sharding
from hetjax.models.parallel.token_rounds import plan_itinerary

# B batch · S sequence · D width · F hidden width of an expert · E experts · K experts chosen by a token


FURTHER_ROUNDS = "further_rounds"
"""The named scope of what runs only where more tokens ask for an expert than the first round has room for."""

Function = TypeVar("Function", bound=Callable)


def expert_parallel(
    x: Float[Array, "B S D"],
    experts: Int[Array, "B S K"],
    weights: Float[Array, "B S K"],
    kernels: ExpertKernels,
    activation: Activation,
    capacity: int | None = None,
    margin: float = 1.2,
) -> Float[Array, "B S D"]:
    """Return the sum of weights[.., k] * expert experts[.., k] (x) over k; number E stands for no expert.

    `capacity` promises that no expert is asked for by more tokens of a sequence. Buffers hold `margin` times what
    arrives at a device under an even load. Raises LayoutError where the layout in force does not fit.
    """
    sharding = expert_sharding(kernels.down.shape[0], x.shape[-1], x.dtype, activation, capacity, margin)
    return _mix(sharding, x, experts, weights, kernels)


# ── forward and backward, each one `shard_map` ───────────────────────────────────────────────────────


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(sharding: ExpertSharding, x, experts, weights, kernels):
    return _mixed_and_kept(sharding, x, experts, weights, kernels)[0]


def _forward(sharding: ExpertSharding, x, experts, weights, kernels):
    perturbed = [each.perturbed for each in (*kernels.first, kernels.down)]
    x, experts, weights, kernels = jax.tree.map(
        lambda each: each.value, (x, experts, weights, kernels), is_leaf=lambda each: isinstance(each, CustomVJPPrimal)
    )
    y, kept = _mixed_and_kept(sharding, x, experts, weights, kernels)
    # Of kernels that nothing differentiates by no gradient is computed: a static fact, in the tree of the residuals.
    return y, (kept, () if any(perturbed) else None)


def _mixed_and_kept(sharding: ExpertSharding, x, experts, weights, kernels):
    y, kept = _on_devices(
        sharding,
        partial(_forward_part, sharding),
        (sharding.tokens, sharding.tokens, sharding.tokens, sharding.kernels(len(kernels.first))),
        (sharding.tokens, _kept_specs(sharding, len(kernels.first))),
    )(x, experts, weights, kernels)
    # The router keeps x too: it is held once.
    return y, (kept, experts, weights, x, kernels)


def _backward(sharding: ExpertSharding, residuals, gradient):
    residuals, trains = residuals[0], residuals[1] is not None
    kernels: ExpertKernels = residuals[-1]
    tokens, first, (of_first, of_last) = sharding.tokens, len(kernels.first), sharding.gradients
    dx, d_weights, d_kernels = _on_devices(
        sharding,
        partial(_backward_part, sharding, trains),
        (_kept_specs(sharding, first), tokens, tokens, tokens, sharding.kernels(first), tokens),
        (tokens, tokens, ExpertKernels((of_first.spec,) * first, of_last.spec) if trains else None),
    )(*residuals, gradient)
    return dx, None, d_weights, d_kernels


_mix.defvjp(_forward, _backward, symbolic_zeros=True)


def _on_devices(
    sharding: ExpertSharding, function: Function, ins: PyTree[PartitionSpec], outs: PyTree[PartitionSpec]
) -> Function:
    """The function by `jax.shard_map`, with trees of partitions; the function itself without a mesh."""
    if sharding.mesh is None:
        return function
    return jax.shard_map(function, mesh=sharding.mesh, in_specs=ins, out_specs=outs, check_vma=False)


def _kept_specs(sharding: ExpertSharding, first: int):
    own = sharding.of_devices
    return (sharding.first,) * first, None if sharding.peers == 1 else Arrived(own, ExpertSlots(own, own))


def _forward_part(sharding: ExpertSharding, x, experts, weights, kernels: ExpertKernels):
    """(y [B, S, D], what the first round keeps: (first products, what arrived or None))."""
    batch, top_k = x.shape[0], experts.shape[-1]
    tokens, slots = _flat(x), ExpertSlots(_flat(experts), _flat(weights))
    if sharding.peers == 1:
        products = sharding.products(sharding.most_slots(batch, tokens.shape[0], top_k))
        y, first = grouped_experts(products, kernels, tokens, slots, sharding.activation)
        return _sum_of_parts(sharding, y).reshape(x.shape), (first, None)
    rounds = sharding.rounds(batch, tokens.shape[0], top_k)
    plan = plan_itinerary(slots.experts // sharding.local, sharding.neighbours, rounds.room)
    y, kept = forward_round(sharding, rounds.first, plan, 0, kernels, tokens, slots)

    def further(turn, y):
        return y + forward_round(sharding, rounds.further, plan, turn, kernels, tokens, slots)[0]

    if rounds.further:
        y = _further_rounds(plan.rounds, further, y)
    return _sum_of_parts(sharding, y.astype(x.dtype)).reshape(x.shape), kept


def _backward_part(sharding: ExpertSharding, trains: bool, kept, experts, weights, x, kernels: ExpertKernels, gradient):
    """Gradients of x, weights and kernels, if those train."""
    batch, top_k, shape = gradient.shape[0], experts.shape[-1], gradient.shape
    tokens, slots, gradient = _flat(x), ExpertSlots(_flat(experts), _flat(weights)), _flat(gradient)
    if sharding.peers == 1:
        products = sharding.products(sharding.most_slots(batch, tokens.shape[0], top_k))
        d_kernels, dx, d_weights = grouped_experts_backward(
            products, kernels, tokens, slots, kept[0], gradient, sharding.activation, trains
        )
    else:
        rounds = sharding.rounds(batch, tokens.shape[0], top_k)
        plan = plan_itinerary(slots.experts // sharding.local, sharding.neighbours, rounds.room)
        gradients = backward_round(sharding, rounds.first, plan, 0, kernels, kept, gradient, trains)

        def further(turn, gradients):
            kept = recompute_round(sharding, rounds.further, plan, turn, kernels, tokens, slots)
            more = backward_round(sharding, rounds.further, plan, turn, kernels, kept, gradient, trains)
            return jax.tree.map(lambda total, d: total + d.astype(total.dtype), gradients, more)

        if rounds.further:
            wide = jnp.promote_types(x.dtype, jnp.float32)
            gradients = _further_rounds(plan.rounds, further, jax.tree.map(lambda d: d.astype(wide), gradients))
        d_kernels, dx, d_weights = jax.tree.map(
            lambda d, of: d.astype(of.dtype), gradients, (kernels if trains else None, tokens, slots.weights)
        )
    copies = tuple(axis for axis in (*sharding.batch, *sharding.seq) if axis not in sharding.experts)
    of_first, of_last = sharding.gradients
    if trains:
        d_kernels = ExpertKernels(
            tuple(of_first.sum(gradient, copies) for gradient in d_kernels.first), of_last.sum(d_kernels.down, copies)
        )
    dx, d_weights = _sum_of_parts(sharding, dx), _sum_of_parts(sharding, d_weights)
    return dx.reshape(shape), d_weights.reshape(experts.shape), d_kernels


def _further_rounds(rounds: Int[Array, ""], further: Callable, so_far: PyTree[Array]) -> PyTree[Array]:
    """The result after rounds 1, 2, ..., of which there is none where all tokens had room in the first."""
    with jax.named_scope(FURTHER_ROUNDS):
        return jax.lax.while_loop(
            lambda state: state[0] < rounds,
            lambda state: (state[0] + 1, further(*state)),
            (jnp.ones((), jnp.int32), so_far),
        )[1]


def _sum_of_parts(sharding: ExpertSharding, x: Array) -> Array:
    return jax.lax.psum(x, sharding.mlp) if sharding.mlp else x


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
