"""Compute one round of a mixture of experts on a device: tokens go to their experts, are computed, and come back.

Functions run inside `jax.shard_map`, and peers call them together.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.kernels.grouped_experts import (
    ExpertKernels,
    ExpertSlots,
    grouped_experts,
    grouped_experts_backward,
)
from hetjax.models.parallel.expert_sharding import ExpertSharding, Round
from hetjax.models.parallel.token_exchange import Dispatch, dispatch_tokens, send, send_back
from hetjax.models.parallel.token_rounds import Itinerary

# T own tokens · K experts chosen by a token · R tokens that arrive · M places for their slots · D width
# F hidden width of an expert


class Arrived(NamedTuple):
    """The tokens that the peers sent, and what they ask for."""

    tokens: Float[Array, "R D"]
    slots: ExpertSlots


Kept = tuple[tuple[Float[Array, "M F"], ...], Arrived]
"""What a backward round needs: (what the first products gave, what arrived)."""


def forward_round(
    sharding: ExpertSharding,
    sized: Round,
    plan: Itinerary,
    turn: Int[Array, ""] | int,
    kernels: ExpertKernels,
    tokens: Float[Array, "T D"],
    slots: ExpertSlots,
) -> tuple[Float[Array, "T D"], Kept]:
    """Return (what the tokens of this round got from their experts, in float32 at least; what the backward keeps)."""
    dispatch = dispatch_tokens(plan, turn, sharding.neighbours, sized.buffers)
    computed, kept = _compute(sharding, sized, dispatch, kernels, tokens, slots)
    return dispatch.unpack(send_back(computed, dispatch, sharding.neighbours, sized.buffers)), kept


def recompute_round(
    sharding: ExpertSharding,
    sized: Round,
    plan: Itinerary,
    turn: Int[Array, ""] | int,
    kernels: ExpertKernels,
    tokens: Float[Array, "T D"],
    slots: ExpertSlots,
) -> Kept:
    """Return what a forward round keeps; nothing comes back."""
    dispatch = dispatch_tokens(plan, turn, sharding.neighbours, sized.buffers)
    return _compute(sharding, sized, dispatch, kernels, tokens, slots)[1]


def backward_round(
    sharding: ExpertSharding,
    sized: Round,
    plan: Itinerary,
    turn: Int[Array, ""] | int,
    kernels: ExpertKernels,
    kept: Kept,
    gradient: Float[Array, "T D"],
    trains: bool,
) -> tuple[ExpertKernels | None, Float[Array, "T D"], Float[Array, "T K"]]:
    """Return the gradients of kernels, if they train, tokens and slot weights, the latter two in float32 at least."""
    first, (tokens, slots) = kept
    peers, buffers = sharding.neighbours, sized.buffers
    dispatch = dispatch_tokens(plan, turn, peers, buffers)
    sent = send(dispatch.pack(gradient), dispatch, peers, buffers)
    d_kernels, d_tokens, d_slots = grouped_experts_backward(
        sized.products, kernels, tokens, slots, first, sent, sharding.activation, trains
    )
    dx, d_weights = (dispatch.unpack(send_back(d, dispatch, peers, buffers)) for d in (d_tokens, d_slots))
    return d_kernels, dx, d_weights


def _compute(
    sharding: ExpertSharding,
    sized: Round,
    dispatch: Dispatch,
    kernels: ExpertKernels,
    tokens: Float[Array, "T D"],
    slots: ExpertSlots,
) -> tuple[Float[Array, "R D"], Kept]:
    """(results of the tokens that arrive, where they arrived; what the backward keeps)."""
    peers, buffers = sharding.neighbours, sized.buffers

    def sent(x: Array) -> Array:
        return send(dispatch.pack(x), dispatch, peers, buffers)

    # Numbers from 1 on, so that a place without a token, 0, asks for no expert of any device.
    number = sent(slots.experts + 1) - 1 - sharding.local * jax.lax.axis_index(peers.axes)
    number = jnp.where((number >= 0) & (number < sharding.local), number, sharding.local)
    arrived = Arrived(sent(tokens), ExpertSlots(number, sent(slots.weights)))
    computed, first = grouped_experts(sized.products, kernels, *arrived, sharding.activation)
    return computed, (first, arrived)
