"""Choose the round in which a token travels to a peer, so that no round needs more room than buffers have.

What devices send to each other is settled by the tokens, and all of it may go to one device. Buffers have room for
what arrives under an even load and a margin; what finds no room goes in further rounds, of a quarter of that room
each. So nothing is dropped and no shape depends on the data. Room is counted in slots: the experts that a token asks
for at a peer. Tokens are in a queue, and those of one queue share the room of a round:

    dense     a queue of each device for each peer, since buffers have as much room for every peer
    ragged    a queue of all devices for each peer, one device after the other
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from hetjax.models.parallel.token_peers import Peers

# N peers · T own tokens · K experts chosen by a token

_FEW_SLOTS = 1024
"""Slots of a device for which there is always room: fewer cost less than another round."""
_FURTHER = 4
"""Further rounds have a part of the room of the first one: what they are for is usually little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rooms:
    """The room of the rounds; of a queue.

    Attributes:
        first: slots in the first round.
        further: slots in each further one; 0 where all that there may be has room in the first.
        most: slots of one token at one peer at most.
    """

    first: int
    further: int
    most: int

    def round_of(self, start: Int[Array, "*dims"]) -> Int[Array, "*dims"]:
        """Return the round of a token whose first slot is number `start` of its queue."""
        if not self.further:
            return jnp.zeros_like(start)
        # The last token of a round may begin with the last number and still have all its slots in the room.
        first, further = self.first - self.most + 1, self.further - self.most + 1
        return jnp.where(start < first, 0, 1 + (start - first) // further)


def rooms(usual: float, worst: int, most: int, margin: float, devices: int = 1) -> Rooms:
    """Return the room for a queue of which `usual` slots are filled under an even load, and `worst` at the most.

    Beside the margin it has room for four standard deviations of so many independent choices. `devices` queues share
    a device.
    """
    first = math.ceil(margin * usual + 4 * math.sqrt(usual)) + most - 1
    if first >= worst or worst * devices <= _FEW_SLOTS:
        return Rooms(first=worst, further=0, most=most)
    return Rooms(first=first, further=max(first // _FURTHER, most), most=most)


class Itinerary(NamedTuple):
    """Which of the own tokens go to which peer, and when.

    Attributes:
        owner: the peer that has the expert of a slot; N where there is none.
        leads: whether a slot is the first of its token for its peer: a token travels once to each.
        goes: whether a token goes to a peer.
        rank: its number among those that do.
        round: its round.
        rounds: how many rounds the devices need; the same on all peers.
    """

    owner: Int[Array, "T K"]
    leads: Bool[Array, "T K"]
    goes: Bool[Array, "T N"]
    rank: Int[Array, "T N"]
    round: Int[Array, "T N"]
    rounds: Int[Array, ""]


def plan_itinerary(owner: Int[Array, "T K"], peers: Peers, room: Rooms) -> Itinerary:
    """Return when each token goes to the peers that have its experts; peers call it together."""
    asked = (owner[..., None] == jnp.arange(peers.count, dtype=owner.dtype)).sum(axis=1, dtype=jnp.int32)
    goes = asked > 0
    start = jnp.cumsum(asked, axis=0, dtype=jnp.int32) - asked
    if room.further and peers.ragged:
        start += _slots_of_those_before(asked.sum(axis=0), peers)
    turn = room.round_of(start)
    rounds = jnp.max(jnp.where(goes, turn, 0)) + 1
    slots = range(owner.shape[1])
    return Itinerary(
        owner=owner,
        leads=jnp.stack([~(owner[:, :k] == owner[:, k : k + 1]).any(axis=1) for k in slots], axis=1),
        goes=goes,
        rank=jnp.cumsum(goes, axis=0, dtype=jnp.int32) - 1,
        round=turn,
        rounds=jax.lax.pmax(rounds, peers.axes) if room.further else rounds,
    )


def _slots_of_those_before(slots: Int[Array, " N"], peers: Peers) -> Int[Array, " N"]:
    """The slots that devices with lower numbers fill at each peer."""
    of_all = jax.lax.all_gather(slots, peers.axes)
    before = jnp.arange(peers.count) < jax.lax.axis_index(peers.axes)
    return jnp.where(before[:, None], of_all, 0).sum(axis=0)
