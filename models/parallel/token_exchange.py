"""Exchange tokens between devices: each is sent to the devices whose experts it asks for, and the results come back.

A token goes once to each peer that needs it, however many of the peer's experts it asks for. For every peer
there is capacity for a fixed number of tokens, the places, since shapes are static:

    dense     `all_to_all` sends all places, on every backend
    ragged    `ragged_all_to_all` sends the places in use, into the same places (not on CPU)

Both give the same result: places that are not in use hold zeros, and are not read.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# N peers · P places for the tokens of one peer · T own tokens · D width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peers:
    """The devices that share out the experts.

    Attributes:
        axes: mesh axes over which they are neighbours.
        count: how many they are, this one included.
        places: tokens that one can send to another at most.
    """

    axes: tuple[str, ...]
    count: int
    places: int


class Dispatch(NamedTuple):
    """Which tokens go to which peer, as one device sees it.

    Attributes:
        token: the own token in each place.
        used: whether a place holds one; the first places of a peer do.
        place: each token's place among those of a peer.
        goes: whether the token is sent to that peer.
    """

    token: Int[Array, "N P"]
    used: Bool[Array, "N P"]
    place: Int[Array, "T N"]
    goes: Bool[Array, "T N"]

    @property
    def sizes(self) -> Int[Array, " N"]:
        """Number of tokens sent to each peer."""
        return self.goes.sum(axis=0, dtype=jnp.int32)

    def pack(self, x: Shaped[Array, "T D"], empty: Shaped[Array, ""] | int = 0) -> Shaped[Array, "N P D"]:
        """Return the tokens in their places, and `empty` in places that are not used."""
        return jnp.where(self.used[..., None], x[self.token], jnp.asarray(empty, x.dtype))

    def unpack(self, x: Float[Array, "N P D"]) -> Float[Array, "T D"]:
        """Return the sum over the peers of what stands in a token's places; the transpose of `pack`."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        of_peers = jnp.where(self.goes[..., None], x[jnp.arange(x.shape[0]), self.place], 0)
        return of_peers.sum(axis=1, dtype=wide).astype(x.dtype)


def dispatch_tokens(goes: Bool[Array, "T N"], peers: Peers) -> Dispatch:
    """Give each token a place at each peer it goes to, in order; at most `peers.places` tokens go to one."""
    place = jnp.cumsum(goes, axis=0, dtype=jnp.int32) - 1
    token = jnp.argsort(~goes, axis=0, stable=True)[: peers.places].T
    used = jnp.arange(peers.places, dtype=jnp.int32) < goes.sum(axis=0, dtype=jnp.int32)[:, None]
    return Dispatch(token, used, jnp.clip(place, 0, peers.places - 1), goes)


def exchange(x: Shaped[Array, "N P D"], peers: Peers) -> Shaped[Array, "N P D"]:
    """Exchange all places: place p of peer j gets what peer j had in place p for this device. Its own transpose."""
    return jax.lax.all_to_all(x, peers.axes, 0, 0)


def exchange_used(
    x: Shaped[Array, "N P D"], peers: Peers, sent: Int[Array, " N"], received: Int[Array, " N"]
) -> Shaped[Array, "N P D"]:
    """Exchange places of which only the first `sent[j]` for peer j, and `received[j]` from it, are in use."""

    def dense(x, sent, received):
        return exchange(x, peers)

    def ragged(x, sent, received):
        flat = x.reshape(-1, x.shape[-1])
        starts = jnp.arange(peers.count, dtype=jnp.int32) * peers.places
        # All tokens from this device start at the same place of any other device's buffer.
        targets = jnp.full(peers.count, jax.lax.axis_index(peers.axes) * peers.places, jnp.int32)
        empty = jnp.zeros_like(flat)
        arrived = jax.lax.ragged_all_to_all(flat, empty, starts, sent, targets, received, axis_name=peers.axes)
        return arrived.reshape(x.shape)

    return jax.lax.platform_dependent(x, sent, received, cpu=dense, default=ragged)
