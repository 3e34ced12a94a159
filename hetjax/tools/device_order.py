"""Find the order of a mesh's devices with which a boundary moves the fewest bytes."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from hetjax.boundary.tiling import Tiling


def best_device_order(shape: tuple[int, ...], itemsize: int, source: Tiling, destination: Tiling) -> tuple[int, ...]:
    """Return the destination's device ids in the order that moves the fewest bytes; as given where that is as good.

    Choosing a device for each place of the mesh is an assignment problem: a device costs at a place what it
    lacks of that place's tile. `dataclasses.replace(destination, devices=order)` is the tiling it means.

    Args:
        shape: of the whole tensor, which both tilings divide.
        itemsize: bytes an element.
        source, destination: the tilings. Devices of the destination alone hold nothing, and fit anywhere.
    """
    tile = itemsize * math.prod(size // count for size, count in zip(shape, destination.counts, strict=True))
    lacking = tile - itemsize * _elements_held(shape, source, destination)
    places = len(destination.devices)
    # In units that all costs share, a device away from its place costs less than the least difference in bytes.
    unit = max(int(np.gcd.reduce(lacking, axis=None)), 1)
    cost = lacking // unit * (places + 1) + 1 - np.eye(places, dtype=np.int64)
    at, chosen = linear_sum_assignment(cost)
    order = dict(zip(at.tolist(), chosen.tolist(), strict=True))
    return tuple(destination.devices[order[place]] for place in range(places))


def _elements_held(shape: tuple[int, ...], source: Tiling, destination: Tiling) -> np.ndarray:
    """Return how many elements of the tile at each place of the destination (dim 0) each device (dim 1) holds."""
    known = np.array([device in source.tile_of for device in destination.devices])
    held = np.tile(known.astype(np.int64), (len(known), 1))
    for dim, (size, mine, other) in enumerate(zip(shape, source.counts, destination.counts, strict=True)):
        tiles = np.array(
            [source.tile_of[device][dim] if device in source.tile_of else 0 for device in destination.devices]
        )
        wanted = np.array([destination.tile_of[device][dim] for device in destination.devices])[:, None]
        first = np.maximum(tiles * (size // mine), wanted * (size // other))
        last = np.minimum((tiles + 1) * (size // mine), (wanted + 1) * (size // other))
        held *= np.maximum(last - first, 0)
    return held
