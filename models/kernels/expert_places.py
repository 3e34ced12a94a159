"""Sort what tokens ask of experts into places by expert: groups of rows that one product each multiplies.

Each token asks for some experts by slots, of which any may be empty. A filled slot gets a place among those of its
expert, in order. Where products want blocks of one expert, each expert's places begin at a multiple of the block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# R tokens · K slots of a token · M places · E experts of this device


class Places(NamedTuple):
    """The slots by expert.

    Attributes:
        slot: the slot at each place; any where none is.
        filled: whether a place holds a slot.
        place: the place of each slot; any of an empty one.
        asked: whether a slot asks for an expert of this device.
        sizes: filled places of each expert.
    """

    slot: Int[Array, " M"]
    filled: Bool[Array, "M 1"]
    place: Int[Array, "R K"]
    asked: Bool[Array, "R K"]
    sizes: Int[Array, " E"]


def find_places(experts: Int[Array, "R K"], count: int, places: int, block: int) -> Places:
    """Return the places of slots that ask for expert 0..count-1, or for none by `count`.

    `places` is M, enough for all that are filled and for the ends of blocks of `block` places.
    """
    flat = experts.reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    bounds = jnp.searchsorted(flat[order], jnp.arange(count + 1, dtype=flat.dtype)).astype(jnp.int32)
    sizes = jnp.diff(bounds)
    ends = jnp.cumsum(-(sizes // -block) * block, dtype=jnp.int32)
    # How far each expert's places are from those of its slots in `order`; empty slots come last, and have no place.
    shift = jnp.append(ends - jnp.diff(ends, prepend=0) - bounds[:-1], 0)
    number = jnp.arange(flat.size, dtype=jnp.int32)
    place = jnp.zeros_like(order).at[order].set(number + shift[flat[order]], unique_indices=True)
    number = jnp.arange(places, dtype=jnp.int32)
    expert = jnp.searchsorted(ends, number, side="right").astype(jnp.int32)
    source = number - shift[expert]
    filled = (expert < count) & (source < bounds[jnp.minimum(expert, count - 1) + 1])
    return Places(
        order[jnp.clip(source, 0, flat.size - 1)],
        filled[:, None],
        jnp.minimum(place, places - 1).reshape(experts.shape),
        experts < count,
        sizes,
    )
