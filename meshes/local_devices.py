"""The devices for which this process compiles and runs programs: the one place that asks."""

from __future__ import annotations

from collections.abc import Iterable

import jax


def local_devices(devices: Iterable[jax.Device]) -> list[jax.Device]:
    """Return those of some devices that this process compiles and runs programs for, in their order.

    These are its own; and all of a target (`is_described`), since no other process would compile for those.
    """
    return [device for device in devices if device.process_index == jax.process_index() or is_described(device)]


def is_described(device: jax.Device) -> bool:
    """Return whether a device is only described (`hetjax.target_devices`): programs are compiled for it, none runs."""
    try:
        return device not in jax.devices(device.platform)
    except RuntimeError:  # the job has no device of this kind
        return True
