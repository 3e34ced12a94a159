"""The devices for which this process compiles and runs programs: the one place that asks."""

from __future__ import annotations

from collections.abc import Iterable

import jax


def local_devices(devices: Iterable[jax.Device]) -> list[jax.Device]:
    """Return those of some devices that this process compiles and runs programs for, in their order.

    These are its own; and all of a target (`is_described`), since no other process would compile for those.
    """
    devices, own = list(devices), jax.process_index()
    there = {platform: _there(platform) for platform in {device.platform for device in devices}}
    return [device for device in devices if device.process_index == own or device not in there[device.platform]]


def is_described(device: jax.Device) -> bool:
    """Return whether a device is only described (`hetjax.target_devices`): programs are compiled for it, none runs."""
    return device not in _there(device.platform)


def _there(platform: str) -> frozenset[jax.Device]:
    """The devices of a kind that the job has."""
    try:
        return frozenset(jax.devices(platform))
    except RuntimeError:  # it has none
        return frozenset()
