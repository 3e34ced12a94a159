"""Compute a mixture of experts over many devices: tokens are sent to the experts, and results back.

Where the layout in force splits the dim "experts", each device has some of the experts, sends its tokens to
the devices whose experts they ask for, and gets the results back (`hetjax.models.parallel.token_exchange`): a token's
D values travel twice in the forward pass and twice in the backward pass. No weight travels. Where "mlp" is split too,
each device computes a part of every expert's hidden values, and the results are summed once they are back.

Forward and backward are one `shard_map` each; the backward keeps the tokens that the experts got and what their
first products gave.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from hetjax.models.kernels.grouped_experts import (
    Activation,
    ExpertKernels,
    ExpertSlots,
    grouped_experts,
    grouped_experts_backward,
)
from hetjax.models.parallel.expert_sharding import ExpertSharding, expert_sharding
from hetjax.models.parallel.token_exchange import Dispatch, Peers, dispatch_tokens, exchange, exchange_used

# B batch · S sequence · D width · F hidden width of an expert · E experts · K experts chosen by a token
# On one device: T tokens · N peers · P places for one peer's tokens · R = N·P tokens to compute · M slots of these


Function = TypeVar("Function", bound=Callable)


def expert_parallel(
    x: Float[Array, "B S D"],
    experts: Int[Array, "B S K"],
    weights: Float[Array, "B S K"],
    kernels: ExpertKernels,
    activation: Activation,
    capacity: int | None = None,
) -> Float[Array, "B S D"]:
    """Return the sum of weights[.., k] * expert experts[.., k] (x) over k; number E stands for no expert.

    `capacity` promises that no expert is asked for by more tokens of a sequence. Raises LayoutError where the layout
    in force does not fit.
    """
    sharding = expert_sharding(kernels.down.shape[0], x.shape[-1], activation, capacity)
    return _mix(sharding, x, experts, weights, kernels)


# ── forward and backward, each one `shard_map` ───────────────────────────────────────────────────────


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(sharding: ExpertSharding, x, experts, weights, kernels):
    return _forward(sharding, x, experts, weights, kernels)[0]


def _forward(sharding: ExpertSharding, x, experts, weights, kernels):
    y, kept = _on_devices(
        sharding,
        partial(_forward_part, sharding),
        (sharding.tokens, sharding.tokens, sharding.tokens, sharding.kernels(len(kernels.first))),
        (sharding.tokens, _kept_specs(sharding, len(kernels.first))),
    )(x, experts, weights, kernels)
    # What is not sent is the very input, of which the backward needs no other copy.
    return y, (kept, experts, kernels, (x, weights) if sharding.peers == 1 else None)


def _backward(sharding: ExpertSharding, residuals, gradient):
    kept, experts, kernels, own = residuals
    tokens, first, (of_first, of_last) = sharding.tokens, len(kernels.first), sharding.gradients
    dx, d_weights, d_kernels = _on_devices(
        sharding,
        partial(_backward_part, sharding),
        (_kept_specs(sharding, first), tokens, sharding.kernels(first), None if own is None else tokens, tokens),
        (tokens, tokens, ExpertKernels((of_first.spec,) * first, of_last.spec)),
    )(kept, experts, kernels, own, gradient)
    return dx, None, d_weights, d_kernels


_mix.defvjp(_forward, _backward)


def _on_devices(
    sharding: ExpertSharding, function: Function, ins: PyTree[PartitionSpec], outs: PyTree[PartitionSpec]
) -> Function:
    """The function by `jax.shard_map`, with trees of partitions; the function itself without a mesh."""
    if sharding.mesh is None:
        return function
    return jax.shard_map(function, mesh=sharding.mesh, in_specs=ins, out_specs=outs, check_vma=False)


def _kept_specs(sharding: ExpertSharding, first: int):
    own = sharding.of_devices
    return (sharding.first,) * first, None if sharding.peers == 1 else (own, ExpertSlots(own, own))


def _forward_part(sharding: ExpertSharding, x, experts, weights, kernels: ExpertKernels):
    """(y [B, S, D], (what the first products gave, (tokens [R, D], slots [R, K]) that arrived or None))."""
    batch, top_k = x.shape[0], experts.shape[-1]
    tokens, slots = _flat(x), ExpertSlots(_flat(experts), _flat(weights))
    if sharding.peers == 1:
        most = sharding.most_slots(batch, tokens.shape[0], top_k)
        y, first = grouped_experts(kernels, tokens, slots, sharding.activation, most)
        return _sum_of_parts(sharding, y).reshape(x.shape), (first, None)
    peers, dispatch = _dispatch(sharding, batch, slots.experts)
    arrived_experts = exchange(_experts_of_peers(sharding, dispatch, slots.experts), peers)
    arrived_slots = ExpertSlots(_flat(arrived_experts), _flat(exchange(dispatch.pack(slots.weights), peers)))
    sizes = dispatch.sizes, _arrived_sizes(sharding, arrived_experts)
    arrived = _flat(exchange_used(dispatch.pack(tokens), peers, *sizes))
    most = sharding.most_slots(batch, arrived.shape[0], top_k)
    computed, first = grouped_experts(kernels, arrived, arrived_slots, sharding.activation, most)
    returned = exchange_used(_by_peer(computed, peers), peers, *sizes[::-1])
    return _sum_of_parts(sharding, dispatch.unpack(returned)).reshape(x.shape), (first, (arrived, arrived_slots))


def _backward_part(sharding: ExpertSharding, kept, experts, kernels: ExpertKernels, own, gradient):
    """Gradients of x, weights and kernels."""
    first, arrived = kept
    batch, top_k, shape = gradient.shape[0], experts.shape[-1], gradient.shape
    gradient, activation = _flat(gradient), sharding.activation
    if sharding.peers == 1:
        x, weights = own
        tokens, slots = _flat(x), ExpertSlots(_flat(experts), _flat(weights))
        most = sharding.most_slots(batch, tokens.shape[0], top_k)
        d_kernels, dx, d_weights = grouped_experts_backward(kernels, tokens, slots, first, gradient, activation, most)
    else:
        tokens, slots = arrived
        peers, dispatch = _dispatch(sharding, batch, _flat(experts))
        sizes = dispatch.sizes, _arrived_sizes(sharding, _by_peer(slots.experts, peers))
        sent = _flat(exchange_used(dispatch.pack(gradient), peers, *sizes))
        most = sharding.most_slots(batch, tokens.shape[0], top_k)
        d_kernels, d_tokens, d_slots = grouped_experts_backward(kernels, tokens, slots, first, sent, activation, most)
        dx = dispatch.unpack(exchange_used(_by_peer(d_tokens, peers), peers, *sizes[::-1]))
        d_weights = dispatch.unpack(exchange(_by_peer(d_slots, peers), peers))
    copies = tuple(axis for axis in (*sharding.batch, *sharding.seq) if axis not in sharding.experts)
    of_first, of_last = sharding.gradients
    d_kernels = ExpertKernels(
        tuple(of_first.sum(gradient, copies) for gradient in d_kernels.first), of_last.sum(d_kernels.down, copies)
    )
    dx, d_weights = _sum_of_parts(sharding, dx), _sum_of_parts(sharding, d_weights)
    return dx.reshape(shape), d_weights.reshape(experts.shape), d_kernels


def _dispatch(sharding: ExpertSharding, batch: int, experts: Int[Array, "T K"]) -> tuple[Peers, Dispatch]:
    peers = Peers(axes=sharding.experts, count=sharding.peers, places=sharding.places(batch, experts.shape[0]))
    owners = experts // sharding.local
    return peers, dispatch_tokens((owners[..., None] == jnp.arange(sharding.peers)).any(axis=1), peers)


def _experts_of_peers(sharding: ExpertSharding, dispatch: Dispatch, experts: Int[Array, "T K"]) -> Int[Array, "N P K"]:
    """What each place asks for, as the peer numbers its experts: 0..E/N-1, and E/N for those of others and for none."""
    local, asked = sharding.local, dispatch.pack(experts, sharding.count)
    numbers = asked - local * jnp.arange(sharding.peers, dtype=experts.dtype)[:, None, None]
    return jnp.where((numbers >= 0) & (numbers < local), numbers, local)


def _arrived_sizes(sharding: ExpertSharding, arrived_experts: Int[Array, "N P K"]) -> Int[Array, " N"]:
    """Tokens that came from each peer: every one of them asks for an expert of this device."""
    return (arrived_experts < sharding.local).any(axis=2).sum(axis=1, dtype=jnp.int32)


def _sum_of_parts(sharding: ExpertSharding, x: Array) -> Array:
    return jax.lax.psum(x, sharding.mlp) if sharding.mlp else x


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _by_peer(x: Float[Array, "R D"], peers: Peers) -> Float[Array, "N P D"]:
    return x.reshape(peers.count, peers.places, -1)
