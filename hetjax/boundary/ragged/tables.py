"""Make of a table of routes what every device sends and takes: plain numbers, on the host, for one microbatch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hetjax.boundary.ragged.places import RaggedPlaces

# B rows and M slots of the destination · D devices of both meshes · S units sent at most · U units of a tile
# T units that some device of the destination takes


class DeviceTables(NamedTuple):
    """What each device does, by its place.

    Attributes:
        sent: the units of its source tile that it sends, those of one receiver behind those of another; then 0.
        counts: how many it sends to each device.
        taken: for each unit of its destination tile: its number among the units that arrive; or with -2 - n unit n of
            its own source tile; or -1 for none.
    """

    sent: Int[np.ndarray, "D S"]
    counts: Int[np.ndarray, "D D"]
    taken: Int[np.ndarray, "D U"]


class Traffic(NamedTuple):
    """The bytes of one exchange.

    Attributes:
        needed: bytes that must move: of every unit that a device takes and does not hold.
    """

    needed: int


class _Units(NamedTuple):
    """Units that devices take: the places of both devices, and the number of the unit in either tile."""

    source: Int[np.ndarray, " T"]
    destination: Int[np.ndarray, " T"]
    source_unit: Int[np.ndarray, " T"]
    destination_unit: Int[np.ndarray, " T"]


def make_tables(places: RaggedPlaces, routes: Int[np.ndarray, "B M"]) -> tuple[DeviceTables, Traffic]:
    """Return the tables of all devices, and what they move.

    `routes` holds for each slot of the destination the number of the source's token that it gets: row * N + slot, or -1
    for none. What arrives at a device lies in the order of the devices that it comes from.
    """
    units = _units(places, routes)
    count = len(places.devices)
    own = units.source == units.destination
    taken = np.full((count, int(np.prod(places.destination_tile))), -1, np.int32)
    taken[units.destination[own], units.destination_unit[own]] = -2 - units.source_unit[own]
    crossing = _Units(*(array[~own] for array in units))
    # Those of one destination come in the order of its tile. Sixteen bits are sorted by radix, ten times as fast.
    pair = (crossing.source * count + crossing.destination).astype(np.uint16 if count <= 256 else np.int32)
    order = np.argsort(pair, kind="stable")
    source, destination, source_unit, destination_unit = (array[order] for array in crossing)
    counts = np.bincount(pair, minlength=count * count).reshape(count, count)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts.ravel()) - counts.ravel(), counts.ravel())
    sent = np.zeros((count, places.most_sent), np.int32)
    sent[source, (np.cumsum(counts, axis=1) - counts)[source, destination] + rank] = source_unit
    taken[destination, destination_unit] = (np.cumsum(counts, axis=0) - counts)[source, destination] + rank
    return DeviceTables(sent, counts.astype(np.int32), taken), Traffic(needed=len(order) * places.unit_bytes)


def _units(places: RaggedPlaces, routes: Int[np.ndarray, "B M"]) -> _Units:
    rows, slots = np.nonzero(routes >= 0)
    from_row, from_slot = np.divmod(routes[rows, slots], places.source_shape[1])
    lane = np.arange(places.lanes)
    own_rows, own_slots, own_lanes = places.source_tile
    to_rows, to_slots, to_lanes = places.destination_tile
    # By token, lane, and the copies of the destination.
    source = places.source_places[(from_row // own_rows)[:, None], (from_slot // own_slots)[:, None], lane // own_lanes]
    destination = places.destination_places[(rows // to_rows)[:, None], (slots // to_slots)[:, None], lane // to_lanes]
    copies = destination.shape[-1]
    # A device that holds a unit takes its own; the others are shared out to those that hold it.
    chosen = source[..., np.arange(copies) % source.shape[-1]]
    holds = (destination[..., :, None] == source[..., None, :]).any(axis=-1)
    source_unit = (from_row % own_rows * own_slots + from_slot % own_slots)[:, None] * own_lanes + lane % own_lanes
    destination_unit = (rows % to_rows * to_slots + slots % to_slots)[:, None] * to_lanes + lane % to_lanes
    return _Units(
        np.where(holds, destination, chosen).ravel(),
        destination.ravel(),
        np.repeat(source_unit.ravel(), copies),
        np.repeat(destination_unit.ravel(), copies),
    )
