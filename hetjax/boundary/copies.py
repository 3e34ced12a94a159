"""Carries pieces as single-device arrays in one process, by `jax.device_put` from device to device."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from hetjax.boundary.plan import BoundaryPlan

Place = tuple[int, int]
"""(slot, device id)."""


class CopyBatch(NamedTuple):
    """Copies that start together.

    Attributes:
        sources, destinations: where each piece is taken from and where it arrives.
        devices: those of `destinations`.
    """

    sources: list[Place]
    destinations: list[Place]
    devices: list[jax.Device]


class Copies:
    """Carries slots on `plan.source_fine` to slots on `plan.destination_fine`.

    Args:
        plan: the plan.
        destination: sharding of the slots that arrive.
        dtype: dtype of the tensor.

    Attributes:
        destination: as given.
        batches: the copies in order; a batch may relay what arrived in one before.
    """

    def __init__(self, plan: BoundaryPlan, destination: NamedSharding, dtype: jnp.dtype):
        self.destination, self._plan, self._dtype = destination, plan, dtype
        self._devices = {device.id: device for device in destination.mesh.devices.flat}
        self._moves = {(move.destination_slot, move.destination): move for move in plan.moves}
        slots = sorted({slot for slot, _ in self._moves})
        self._places = [(slot, device) for slot in slots for device in plan.destination.devices]
        self.batches: list[CopyBatch] = []
        for relay in sorted({move.relay for move in plan.moves}):
            places = [place for place in self._places if place in self._moves and self._moves[place].relay == relay]
            sources = [(self._moves[place].source_slot, self._moves[place].source) for place in places]
            self.batches.append(CopyBatch(sources, places, [self._devices[device] for _, device in places]))
        pieces, counts = plan.piece_shape, plan.destination_fine.counts
        self._shape = tuple(piece * count for piece, count in zip(pieces, counts, strict=True))

    @property
    def blank_bytes(self) -> dict[int, int]:
        """Bytes of `blanks` on each device."""
        size = math.prod(self._plan.piece_shape) * self._dtype.itemsize
        counts = Counter(device for slot, device in self._places if (slot, device) not in self._moves)
        return {device: count * size for device, count in counts.items()}

    @functools.cached_property
    def blanks(self) -> dict[Place, jax.Array]:
        """Zeros on the devices where no piece arrives; to be made before a step, as they come from the host."""
        return {
            (slot, device): jax.device_put(np.zeros(self._plan.piece_shape, self._dtype), self._devices[device])
            for slot, device in self._places
            if (slot, device) not in self._moves
        }

    def __call__(self, slots: Sequence[jax.Array]) -> list[jax.Array]:
        """Start all copies; return the slots on the destination."""
        held = {(i, shard.device.id): shard.data for i, slot in enumerate(slots) for shard in slot.addressable_shards}
        arrived = dict(self.blanks)
        for batch in self.batches:
            moved = jax.device_put([held[place] for place in batch.sources], batch.devices)
            arrived.update(zip(batch.destinations, moved, strict=True))
            # What is relayed after the first batch lies where it arrived.
            held = arrived
        count = self.destination.mesh.size
        pieces = [arrived[place] for place in self._places]
        return [
            jax.make_array_from_single_device_arrays(self._shape, self.destination, pieces[start : start + count])
            for start in range(0, len(pieces), count)
        ]
