"""Compute the experts of one device: tokens sorted by expert, and one grouped matrix product for all of them.

Each token asks for some experts by slots, of which any may be empty. The slots are sorted by expert, so that
`jax.lax.ragged_dot` multiplies the tokens of each expert with its own weights. A slot's weight multiplies
the hidden values, ahead of the last product: the results of a token's slots are then summed as they are, and
the gradient of a weight is found where its expert is. The backward pass keeps the tokens and what the first
products gave; it is written out, so that weights enter it as they are stored.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# R tokens · K slots of a token · M slots that may be filled · E experts of this device
# D width · F hidden width of an expert

Activation = Literal["swiglu", "relu2"]


class ExpertKernels(NamedTuple):
    """Weights of the experts; the products that come first are (gate, up) for SwiGLU and (up,) for squared ReLU."""

    first: tuple[Float[Array, "E D F"], ...]
    down: Float[Array, "E F D"]


class ExpertSlots(NamedTuple):
    """What the tokens ask for: expert 0..E-1 or E for an empty slot, with a weight."""

    experts: Int[Array, "R K"]
    weights: Float[Array, "R K"]


class _Sorted(NamedTuple):
    """ExpertSlots by expert: the slot at each place, whether it is filled, each slot's place, and slots an expert."""

    slot: Int[Array, " M"]
    filled: Bool[Array, "M 1"]
    place: Int[Array, "R K"]
    sizes: Int[Array, " E"]


def grouped_experts(
    kernels: ExpertKernels, tokens: Float[Array, "R D"], slots: ExpertSlots, activation: Activation, most: int
) -> tuple[Float[Array, "R D"], tuple[Float[Array, "M F"], ...]]:
    """Return (sum over a token's slots of weight * expert(token), what the first products gave).

    At most `most` slots are filled. expert(x) is down(silu(gate(x)) * up(x)) (Shazeer 2020) or down(relu(up(x))²)
    (So et al. 2021).
    """
    by_expert = _sort(slots, kernels, most)
    x = tokens[by_expert.slot // slots.experts.shape[1]]
    first = tuple(_product(x, kernel, by_expert) for kernel in kernels.first)
    hidden = _hidden(first, _weights(slots, by_expert), by_expert.filled, activation)
    return _sum_of_slots(_product(hidden, kernels.down, by_expert), by_expert, slots), first


def grouped_experts_backward(
    kernels: ExpertKernels,
    tokens: Float[Array, "R D"],
    slots: ExpertSlots,
    first: tuple[Float[Array, "M F"], ...],
    gradient: Float[Array, "R D"],
    activation: Activation,
    most: int,
) -> tuple[ExpertKernels, Float[Array, "R D"], Float[Array, "R K"]]:
    """Return the gradients of kernels, tokens and slot weights of `grouped_experts`, from that of its result."""
    by_expert = _sort(slots, kernels, most)
    token = by_expert.slot // slots.experts.shape[1]
    hidden, of_hidden = jax.vjp(
        lambda first, weights: _hidden(first, weights, by_expert.filled, activation), first, _weights(slots, by_expert)
    )
    d_hidden, d_down = _product_backward(hidden, kernels.down, by_expert, gradient[token])
    d_first, d_weights = of_hidden(d_hidden)
    x = tokens[token]
    products = [_product_backward(x, kernel, by_expert, g) for kernel, g in zip(kernels.first, d_first, strict=True)]
    d_tokens = sum(d_x for d_x, _ in products)
    return (
        ExpertKernels(tuple(d_kernel for _, d_kernel in products), d_down),
        _sum_of_slots(d_tokens, by_expert, slots),
        jnp.where(_is_filled(slots, by_expert), d_weights[by_expert.place], 0),
    )


def _sort(slots: ExpertSlots, kernels: ExpertKernels, most: int) -> _Sorted:
    experts, count = slots.experts.reshape(-1), kernels.down.shape[0]
    slot = jnp.argsort(experts, stable=True).astype(jnp.int32)
    place = jnp.zeros_like(slot).at[slot].set(jnp.arange(slot.size, dtype=jnp.int32))
    slot = slot[:most]
    bounds = jnp.searchsorted(experts[slot], jnp.arange(count + 1, dtype=experts.dtype)).astype(jnp.int32)
    place = jnp.minimum(place, most - 1).reshape(slots.experts.shape)
    return _Sorted(slot, (experts[slot] < count)[:, None], place, jnp.diff(bounds))


def _weights(slots: ExpertSlots, by_expert: _Sorted) -> Float[Array, " M"]:
    return slots.weights.reshape(-1)[by_expert.slot]


def _product(x: Float[Array, "M _"], kernel: Float[Array, "E _ _"], by_expert: _Sorted) -> Float[Array, "M _"]:
    # What a backend leaves behind the last expert's tokens is not defined.
    return jnp.where(by_expert.filled, jax.lax.ragged_dot(x, kernel, by_expert.sizes), 0)


def _product_backward(x, kernel, by_expert: _Sorted, gradient):
    """Gradients of x, which say nothing in places that are not filled, and of the kernel."""
    gradient = jnp.where(by_expert.filled, gradient, 0)
    return jax.vjp(lambda x, kernel: jax.lax.ragged_dot(x, kernel, by_expert.sizes), x, kernel)[1](gradient)


def _hidden(
    first: tuple[Float[Array, "M F"], ...],
    weights: Float[Array, " M"],
    filled: Bool[Array, "M 1"],
    activation: Activation,
) -> Float[Array, "M F"]:
    if activation == "swiglu":
        gate, up = first
        values = jax.nn.silu(gate) * up
    else:
        values = jnp.square(jax.nn.relu(first[0]))
    return jnp.where(filled, values.astype(weights.dtype) * weights[:, None], 0).astype(values.dtype)


def _is_filled(slots: ExpertSlots, by_expert: _Sorted) -> Bool[Array, "R K"]:
    return slots.experts < by_expert.sizes.shape[0]


def _sum_of_slots(values: Float[Array, "M D"], by_expert: _Sorted, slots: ExpertSlots) -> Float[Array, "R D"]:
    wide = jnp.promote_types(values.dtype, jnp.float32)
    of_slots = jnp.where(_is_filled(slots, by_expert)[..., None], values[by_expert.place], 0)
    return of_slots.sum(axis=1, dtype=wide).astype(values.dtype)
