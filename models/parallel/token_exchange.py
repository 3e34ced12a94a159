"""Exchange tokens between devices: each is sent to the devices whose experts it asks for, and the results come back.

A token goes once to each peer that needs it, however many of the peer's experts it asks for. A round of the exchange
takes those whose turn it is (`hetjax.models.parallel.token_rounds`):

    dense     `all_to_all` sends as many places for each peer, in use or not, on every backend
    ragged    `ragged_all_to_all` sends what is in use, one peer's tokens behind the other's (not on CPU)

Places that are not in use hold zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from hetjax.models.parallel.token_peers import Peers
from hetjax.models.parallel.token_rounds import Itinerary

# N peers · P places to send from · R places to receive in · T own tokens · K experts chosen by a token · D width


class Buffers(NamedTuple):
    """Static sizes of one round: places to send tokens from, P, and to receive tokens in, R. Dense, both are N times
    those for one peer."""

    sent: int
    received: int


class Dispatch(NamedTuple):
    """The tokens of one round, as one device sees it.

    Attributes:
        token: the own token in each place.
        used: whether a place holds one.
        place: the place of the token of each slot.
        goes: whether the token is sent for this slot.
        sizes: how many tokens go from each peer to each, by (from, to); None where all places are exchanged.
    """

    token: Int[Array, " P"]
    used: Bool[Array, " P"]
    place: Int[Array, "T K"]
    goes: Bool[Array, "T K"]
    sizes: Int[Array, "N N"] | None

    def pack(self, x: Shaped[Array, "T D"]) -> Shaped[Array, "P D"]:
        """Return the tokens in their places, and 0 in places that are not used."""
        return jnp.where(self.used[:, None], x[self.token], jnp.zeros((), x.dtype))

    def unpack(self, x: Float[Array, "P D"]) -> Float[Array, "T D"]:
        """Return the sum of what stands in a token's places, in float32 at least; the transpose of `pack`."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        total = jnp.zeros((self.place.shape[0], x.shape[1]), wide)
        for place, goes in zip(self.place.T, self.goes.T, strict=True):
            total += jnp.where(goes[:, None], x[place], 0).astype(wide)
        return total


def dispatch_tokens(plan: Itinerary, turn: Int[Array, ""] | int, peers: Peers, buffers: Buffers) -> Dispatch:
    """Give each token whose round it is a place for each peer that it goes to, in order; peers call it together."""
    goes = plan.goes & (plan.round == turn)
    sizes = goes.sum(axis=0, dtype=jnp.int32)
    rank = plan.rank - (plan.goes & (plan.round < turn)).sum(axis=0, dtype=jnp.int32)
    starts = jnp.cumsum(sizes) - sizes if peers.ragged else jnp.arange(peers.count) * (buffers.sent // peers.count)
    owner = jnp.minimum(plan.owner, peers.count - 1)
    goes = plan.leads & (plan.owner < peers.count) & jnp.take_along_axis(goes, owner, axis=1)
    place = jnp.take_along_axis(rank + starts.astype(jnp.int32), owner, axis=1)
    number = jnp.broadcast_to(jnp.arange(place.shape[0], dtype=jnp.int32)[:, None], place.shape)
    targets = jnp.where(goes, place, buffers.sent)
    return Dispatch(
        token=jnp.zeros(buffers.sent, jnp.int32).at[targets].set(number, mode="drop"),
        used=jnp.zeros(buffers.sent, bool).at[targets].set(True, mode="drop"),
        place=jnp.where(goes, place, 0),
        goes=goes,
        sizes=jax.lax.all_gather(sizes, peers.axes) if peers.ragged else None,
    )


def send(x: Shaped[Array, "P D"], dispatch: Dispatch, peers: Peers, buffers: Buffers) -> Shaped[Array, "R D"]:
    """Exchange packed tokens; they arrive in the order of the devices that they come from."""
    if dispatch.sizes is None:
        return _exchange(x, peers)
    return _exchange_used(x, dispatch.sizes, peers, buffers.received)


def send_back(x: Shaped[Array, "R D"], dispatch: Dispatch, peers: Peers, buffers: Buffers) -> Shaped[Array, "P D"]:
    """Exchange results from the places of tokens that arrived, back to those that they were sent from."""
    if dispatch.sizes is None:
        return _exchange(x, peers)
    return _exchange_used(x, dispatch.sizes.T, peers, buffers.sent)


def _exchange(x: Shaped[Array, "P D"], peers: Peers) -> Shaped[Array, "P D"]:
    """All places: those of peer j get what peer j had in its places for this device. Its own transpose."""
    by_peer = x.reshape(peers.count, -1, x.shape[-1])
    return jax.lax.all_to_all(by_peer, peers.axes, 0, 0).reshape(x.shape)


def _exchange_used(x: Shaped[Array, "P D"], sizes: Int[Array, "N N"], peers: Peers, places: int) -> Array:
    """The places in use: sizes[i, j] of peer i for peer j, on both sides in the order of the other one."""
    me = jax.lax.axis_index(peers.axes)
    sent, received = sizes[me], sizes[:, me]
    starts = jnp.cumsum(sent) - sent
    targets = (jnp.cumsum(sizes, axis=0) - sizes)[me]
    empty = jnp.zeros((places, x.shape[-1]), x.dtype)
    return jax.lax.ragged_all_to_all(x, empty, starts, sent, targets, received, axis_name=peers.axes)
