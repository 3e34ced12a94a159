"""Rows that devices send to each other and get back: a token travels to the devices whose experts it asks for.

A row goes once to each peer that needs it, however many of the peer's experts it asks for. For every peer
there is room for a fixed number of rows, since shapes are static; of these,

    dense     `all_to_all` sends the whole room, on every backend
    ragged    `ragged_all_to_all` sends the rows in use, into the same room (not on CPU)

Both give the same result: places that are not in use hold zeros, and are not read.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# N peers · P places for the rows of one peer · T own rows · D width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peers:
    """The devices that share out the experts.

    Attributes:
        axes: mesh axes over which they are neighbours.
        count: how many they are, this one included.
        places: rows that one can send to another at most.
    """

    axes: tuple[str, ...]
    count: int
    places: int


class Sending(NamedTuple):
    """Which rows go where, as one device sees it.

    Attributes:
        row: the own row in each place.
        used: whether a place holds one; the first places of a peer do.
        place: each row's place among those of a peer.
        goes: whether the row is sent to that peer.
    """

    row: Int[Array, "N P"]
    used: Bool[Array, "N P"]
    place: Int[Array, "T N"]
    goes: Bool[Array, "T N"]

    @property
    def sizes(self) -> Int[Array, " N"]:
        """Rows sent to each peer."""
        return self.goes.sum(axis=0, dtype=jnp.int32)

    def pack(self, x: Shaped[Array, "T D"], empty: Shaped[Array, ""] | int = 0) -> Shaped[Array, "N P D"]:
        """The rows in their places, and `empty` in places that are not used."""
        return jnp.where(self.used[..., None], x[self.row], jnp.asarray(empty, x.dtype))

    def unpack(self, x: Float[Array, "N P D"]) -> Float[Array, "T D"]:
        """The sum over the peers of what stands in a row's places; the transpose of `pack`."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        of_peers = jnp.where(self.goes[..., None], x[jnp.arange(x.shape[0]), self.place], 0)
        return of_peers.sum(axis=1, dtype=wide).astype(x.dtype)


def plan_sending(goes: Bool[Array, "T N"], peers: Peers) -> Sending:
    """Rows keep their order among those sent to a peer, which are `peers.places` at most."""
    place = jnp.cumsum(goes, axis=0, dtype=jnp.int32) - 1
    row = jnp.argsort(~goes, axis=0, stable=True)[: peers.places].T
    used = jnp.arange(peers.places, dtype=jnp.int32) < goes.sum(axis=0, dtype=jnp.int32)[:, None]
    return Sending(row, used, jnp.clip(place, 0, peers.places - 1), goes)


def swap(x: Shaped[Array, "N P D"], peers: Peers) -> Shaped[Array, "N P D"]:
    """Place p of peer j gets what peer j had in place p for this device, all places alike. Its own transpose."""
    return jax.lax.all_to_all(x, peers.axes, 0, 0)


def swap_used(
    x: Shaped[Array, "N P D"], peers: Peers, sent: Int[Array, " N"], got: Int[Array, " N"]
) -> Shaped[Array, "N P D"]:
    """`swap`, of which only the first `sent[j]` places for peer j, and `got[j]` from it, are in use."""

    def dense(x, sent, got):
        return swap(x, peers)

    def ragged(x, sent, got):
        flat = x.reshape(-1, x.shape[-1])
        starts = jnp.arange(peers.count, dtype=jnp.int32) * peers.places
        # All rows from this device start at the same place of any other's room.
        there = jnp.full(peers.count, jax.lax.axis_index(peers.axes) * peers.places, jnp.int32)
        got_rows = jax.lax.ragged_all_to_all(flat, jnp.zeros_like(flat), starts, sent, there, got, axis_name=peers.axes)
        return got_rows.reshape(x.shape)

    return jax.lax.platform_dependent(x, sent, got, cpu=dense, default=ragged)
