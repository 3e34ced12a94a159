"""Targets: accelerators that are not there, described so that programs can be compiled for them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from hetjax.compilation.gpu_text import gpu_text
from hetjax.errors import ConfigError
from hetjax.meshes import Hardware, find_hardware

_GPUS = {"a100": "A100", "h100": "H100", "h200": "H200", "b200": "B200"}
_TPUS = {"v5e": "TPU v5 lite", "v5p": "TPU v5"}
_HOW = (
    'write a GPU (a100, h100, h200, b200) and how many, such as "h100x256", in hosts of 8; "h100:32x4" for 32 hosts of '
    '4; or a TPU and its topology, such as "v5p:4x4x4"'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Accelerators that are described by a name.

    Attributes:
        name: as it was given.
        hardware: the figures of one device.
        devices: how many there are.
        devices_per_host: how many of them the fast links of a host join, in the order of their numbers.
        topology: the name that JAX knows the topology by.
    """

    name: str
    hardware: Hardware
    devices: int
    devices_per_host: int
    topology: str

    @property
    def is_tpu(self) -> bool:
        """Whether it is of TPUs rather than GPUs."""
        return _is_tpu(self.hardware)


def parse_target(name: str) -> Target:
    """Return the target of a name: "h100x256" (hosts of 8; fewer than 8 are one host), "h100:32x4", "v5p:4x4x4".

    Raises ConfigError for another name, a kind of device that is not known, or GPUs that do not fill their hosts.
    """
    match = re.fullmatch(r"(?P<kind>[a-z]\w*?)(?:x(?P<count>\d+)|:(?P<sizes>\d+(?:x\d+)+))", name.lower())
    if match is None:
        raise ConfigError(f"target '{name}' cannot be read; {_HOW}")
    kind = match["kind"]
    sizes = [int(size) for size in (match["sizes"] or match["count"]).split("x")]
    if min(sizes) < 1:
        raise ConfigError(f"target '{name}' has no device; {_HOW}")
    if kind in _TPUS and match["sizes"]:
        hardware, count = find_hardware(_TPUS[kind]), math.prod(sizes)
        topology = f"{kind}:{match['sizes']}"
        return Target(name=name, hardware=hardware, devices=count, devices_per_host=count, topology=topology)
    if kind not in _GPUS or len(sizes) > 2:
        raise ConfigError(f"target '{name}' is unknown; {_HOW}")
    hardware = find_hardware(_GPUS[kind])
    hosts, each = sizes if match["sizes"] else _hosts(name, sizes[0], hardware.devices_per_host)
    return Target(
        name=name, hardware=hardware, devices=hosts * each, devices_per_host=each, topology=f"1x{hosts}x{each}"
    )


def _hosts(name: str, count: int, full: int) -> tuple[int, int]:
    """Return (hosts, GPUs of each). Raises ConfigError where a host would not be full."""
    if count > full and count % full:
        raise ConfigError(
            f"target '{name}': {count} GPUs do not fill hosts of {full}; give a multiple of {full}, or hosts and GPUs "
            f'of each, such as "{name.lower().partition("x")[0]}:2x{full // 2}"'
        )
    return max(1, count // full), min(count, full)


def target_devices(name: str) -> tuple[jax.Device, ...]:
    """Return the devices of a target, for `Trainer(devices=...)`: programs compile for them, and none runs.

    A process that has not chosen its platforms (`jax_platforms`, JAX_PLATFORMS) runs on CPUs from here on, since it
    needs no accelerator. The same name gives the same devices.

    Args:
        name: "h100x256" (also a100, h200, b200; hosts of 8), "h100:32x4" (hosts x GPUs of each), "v5p:4x4x4".

    Raises ConfigError for a name that cannot be read, and where the compiler's packages are missing.
    """
    target = parse_target(name)
    return _devices(target.hardware, target.topology)


@functools.cache
def _devices(hardware: Hardware, topology: str) -> tuple[jax.Device, ...]:
    _check_package(hardware)
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
    try:
        if _is_tpu(hardware):
            # Or libtpu asks the metadata server of a cloud machine what it is.
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
            return tuple(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
        text = gpu_text(hardware)
        found = topologies.get_topology_desc(platform="cuda", topology=topology, target_config=text)
        return tuple(found.devices)
    except RuntimeError as error:  # also what XLA raises, and NotImplementedError without a plugin
        raise ConfigError(
            f"the devices of {topology} ({hardware.name}) cannot be described: {error}; ask for a target before JAX is "
            f"first used, and see that the compiler's packages are those of jax {jax.__version__}: {_install(hardware)}"
        ) from error


def _check_package(hardware: Hardware) -> None:
    """Raise ConfigError where the package with the compiler is missing."""
    names = ("libtpu",) if _is_tpu(hardware) else ("jax_cuda13_plugin", "jax_cuda12_plugin")
    if not any(importlib.util.find_spec(name) for name in names):
        raise ConfigError(
            f"a target of {hardware.name} needs {names[0]}, which is not installed; run {_install(hardware)}"
        )


def _install(hardware: Hardware) -> str:
    return "`pip install libtpu`" if _is_tpu(hardware) else "`pip install -e '.[targets]'` in hetjax's folder"


def _is_tpu(hardware: Hardware) -> bool:
    return hardware.name.startswith("TPU")
