"""Find the part of an array that each device of this process holds."""

from __future__ import annotations

from typing import TypeAlias

import jax
from jax.sharding import Sharding

Bounds: TypeAlias = tuple[tuple[int, int], ...]
"""A start and a stop in every dim."""


def devices_by_bounds(sharding: Sharding, shape: tuple[int, ...]) -> dict[Bounds, list[jax.Device]]:
    """Return this process's devices by the part of an array of this shape that they hold, each part once."""
    found: dict[Bounds, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(each.indices(size)[:2] for each, size in zip(index, shape, strict=True))
        found.setdefault(bounds, []).append(device)
    return found
