"""Choose the kernels that programs may use: those that were found to compute what the portable path does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hetjax.errors import ConfigError
from hetjax.models.kernels.checks import KERNELS, KernelCheck, difference
from hetjax.stages.host_transfer import every_process

_log = logging.getLogger(__name__)

Kernels = Literal["auto", "portable"]
"""Which kernels programs use: those that pass their check on the devices, or none but plain operations."""


def replaced_kernels(
    setting: Kernels, devices: Sequence[jax.Device], kernels: Sequence[KernelCheck] = KERNELS
) -> frozenset[str]:
    """Return the names of kernels that programs for `devices` do without.

    With "portable" these are all; with "auto" those that fail or differ on a device of this process or of another one
    that shares the devices, which all call this. One line in the log says which, and why. Devices that are not there,
    for which programs are only compiled, count as good. Raises ConfigError for another setting.
    """
    if setting not in get_args(Kernels):
        raise ConfigError(f"kernels={setting!r}; give one of {', '.join(get_args(Kernels))}")
    if setting == "portable":
        return frozenset(kernel.name for kernel in kernels)
    there = [device for device in jax.local_devices() if device in devices]
    tried = [kernel for kernel in kernels if any(kernel.runs_on(device) for device in devices)]
    if not there or not tried:
        return frozenset()
    wrong = [_differs_somewhere(kernel, there) for kernel in tried]
    return frozenset(kernel.name for kernel, bad in zip(tried, _of_any_process(wrong, devices), strict=True) if bad)


def _differs_somewhere(kernel: KernelCheck, devices: Sequence[jax.Device]) -> bool:
    for device in devices:
        what = difference(kernel, device) if kernel.runs_on(device) else None
        if what is not None:
            _log.warning("the portable path replaces the kernel '%s' on %s: %s", kernel.name, device.device_kind, what)
            return True
    return False


def _of_any_process(flags: Sequence[bool], devices: Sequence[jax.Device]) -> Sequence[bool]:
    """Whether each flag is set in this process or in any other that has one of the devices."""
    copied = every_process(devices)
    if copied.mesh.size == 1:
        return flags
    rows = NamedSharding(copied.mesh, PartitionSpec(copied.mesh.axis_names))
    mine = np.array([flags])
    given = jax.make_array_from_callback((copied.mesh.size, len(flags)), rows, lambda index: mine)
    shared = jax.jit(lambda x: x.any(axis=0), out_shardings=copied)(given)
    return np.asarray(shared.addressable_data(0)).tolist()
