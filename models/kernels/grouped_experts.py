"""Compute the experts of one device: tokens sorted by expert, and one grouped matrix product for all of them.

Each token asks for some experts by slots, of which any may be empty. The slots are sorted by expert, so that
grouped products multiply the tokens of each expert with its own weights. A slot's weight multiplies
the hidden values, ahead of the last product: the results of a token's slots are then summed as they are, and
the gradient of a weight is found where its expert is. The backward pass keeps the tokens and what the first
products gave; it is written out, so that weights enter it as they are stored.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hetjax.models.kernels.expert_places import Places, find_places
from hetjax.models.kernels.grouped_products import GroupedProducts

# R tokens · K slots of a token · M places for slots · E experts of this device
# D width · F hidden width of an expert, filled up to what products take

Activation = Literal["swiglu", "relu2"]


class ExpertKernels(NamedTuple):
    """Weights of the experts; the products that come first are (gate, up) for SwiGLU and (up,) for squared ReLU."""

    first: tuple[Float[Array, "E D F"], ...]
    down: Float[Array, "E F D"]


class ExpertSlots(NamedTuple):
    """What the tokens ask for: expert 0..E-1 or E for an empty slot, with a weight."""

    experts: Int[Array, "R K"]
    weights: Float[Array, "R K"]


def grouped_experts(
    products: GroupedProducts,
    kernels: ExpertKernels,
    tokens: Float[Array, "R D"],
    slots: ExpertSlots,
    activation: Activation,
) -> tuple[Float[Array, "R D"], tuple[Float[Array, "M F"], ...]]:
    """Return (sum over a token's slots of weight * expert(token), what the first products gave).

    At most `products.rows` slots are filled. expert(x) is down(silu(gate(x)) * up(x)) (Shazeer 2020) or
    down(relu(up(x))²) (So et al. 2021).
    """
    places = _places(products, slots)
    kernels = _filled_up(kernels, products.width_unit)
    x = tokens[places.slot // slots.experts.shape[1]]
    # Places that hold no slot say nothing, neither here nor after the last product.
    first = tuple(products.multiply(x, kernel, places.sizes) for kernel in kernels.first)
    hidden = _hidden(first, _weights(slots, places), places.filled, activation)
    return _sum_of_slots(products.multiply(hidden, kernels.down, places.sizes), places), first


def grouped_experts_backward(
    products: GroupedProducts,
    kernels: ExpertKernels,
    tokens: Float[Array, "R D"],
    slots: ExpertSlots,
    first: tuple[Float[Array, "M F"], ...],
    gradient: Float[Array, "R D"],
    activation: Activation,
    trains: bool = True,
) -> tuple[ExpertKernels | None, Float[Array, "R D"], Float[Array, "R K"]]:
    """Return the gradients of kernels, tokens and slot weights of `grouped_experts`, from that of its result.

    Kernels that do not train (`trains`) have none.
    """
    places, full = _places(products, slots), _filled_up(kernels, products.width_unit)
    token, sizes = places.slot // slots.experts.shape[1], places.sizes
    hidden, of_hidden = jax.vjp(
        lambda first, weights: _hidden(first, weights, places.filled, activation), first, _weights(slots, places)
    )
    gradient = jnp.where(places.filled, gradient[token], 0)
    d_hidden = products.multiply(gradient, full.down, sizes, transposed=True)
    d_first, d_weights = of_hidden(d_hidden)
    x = tokens[token]
    d_tokens = sum(
        products.multiply(d, kernel, sizes, transposed=True) for d, kernel in zip(d_first, full.first, strict=True)
    )
    d_kernels = None
    if trains:
        made = ExpertKernels(
            tuple(products.kernel_gradient(x, d, sizes) for d in d_first),
            products.kernel_gradient(hidden, gradient, sizes),
        )
        d_kernels = jax.tree.map(lambda d, kernel: d[:, : kernel.shape[1], : kernel.shape[2]], made, kernels)
    return d_kernels, _sum_of_slots(d_tokens, places), jnp.where(places.asked, d_weights[places.place], 0)


def _places(products: GroupedProducts, slots: ExpertSlots) -> Places:
    return find_places(slots.experts, products.count, products.places, products.block)


def _filled_up(kernels: ExpertKernels, unit: int) -> ExpertKernels:
    """The kernels with a hidden width that `unit` divides; what is added is 0, and so is what comes of it."""
    more = -kernels.down.shape[1] % unit
    if not more:
        return kernels
    first = tuple(jnp.pad(kernel, ((0, 0), (0, 0), (0, more))) for kernel in kernels.first)
    return ExpertKernels(first, jnp.pad(kernels.down, ((0, 0), (0, more), (0, 0))))


def _weights(slots: ExpertSlots, places: Places) -> Float[Array, " M"]:
    return slots.weights.reshape(-1)[places.slot]


def _hidden(
    first: tuple[Float[Array, "M F"], ...],
    weights: Float[Array, " M"],
    filled: Bool[Array, "M 1"],
    activation: Activation,
) -> Float[Array, "M F"]:
    # Ahead of the activation, since what a backend leaves in places without a slot need not be finite.
    first = tuple(jnp.where(filled, values, 0) for values in first)
    if activation == "swiglu":
        gate, up = first
        values = jax.nn.silu(gate) * up
    else:
        values = jnp.square(jax.nn.relu(first[0]))
    return (values.astype(weights.dtype) * jnp.where(filled, weights[:, None], 0)).astype(values.dtype)


def _sum_of_slots(values: Float[Array, "M D"], places: Places) -> Float[Array, "R D"]:
    """The sum of what stands in the places of a token's slots, slot by slot: no array holds the slots of all tokens."""
    wide = jnp.promote_types(values.dtype, jnp.float32)
    total = jnp.zeros((places.place.shape[0], values.shape[1]), wide)
    for place, asked in zip(places.place.T, places.asked.T, strict=True):
        total += jnp.where(asked[:, None], values[place], 0).astype(wide)
    return total.astype(values.dtype)
