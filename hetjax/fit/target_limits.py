"""What a placement asks of a target: as many devices as there are, and fast links where it sends most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from hetjax.compilation.targets import Target
from hetjax.errors import ConfigError
from hetjax.meshes import AXES, Layout, ResolvedPlacement, parse_devices


def check_holds(target: Target, placement: Mapping[str, Layout]) -> None:
    """Raise ConfigError where the layout of a module names or fills more devices than the target has."""
    needs = {module: _devices_needed(module, layout) for module, layout in placement.items()}
    module, most = max(needs.items(), key=lambda need: need[1])
    if most > target.devices:
        kind = target.name.lower().partition(":")[0].partition("x")[0]
        larger = f"--target {kind}x{_full_hosts(most, target.hardware.devices_per_host)}"
        wanted = "a larger topology" if target.is_tpu else larger
        raise ConfigError(
            f"module '{module}': its layout takes {most} devices, but the target {target.name} has {target.devices}; "
            f"use {wanted}, or lower a degree of the layout"
        )


def _devices_needed(module: str, layout: Layout) -> int:
    numbers = parse_devices(layout.devices, module=module)
    return layout.stage * math.prod(layout.mesh_shape) if numbers is None else max(numbers) + 1


def _full_hosts(count: int, each: int) -> int:
    return count if count <= each else -(-count // each) * each


def slow_tensor(target: Target, placement: ResolvedPlacement) -> Iterator[str]:
    """Yield a warning for each module whose tensor degree spans hosts: every layer then waits for the network."""
    links, network = target.hardware.link_bandwidth, target.hardware.network_bandwidth
    for module, grid in placement.grids.items():
        groups = np.moveaxis(grid, 1 + AXES.index("tensor"), -1).reshape(-1, grid.shape[1 + AXES.index("tensor")])
        hosts = max(len(_hosts(target, group)) for group in groups)
        if hosts > 1:
            yield (
                f"module '{module}': tensor={groups.shape[1]} spans {hosts} hosts of {target.devices_per_host}, so the "
                f"collectives of each layer cross the network, {network / 1e9:.0f} GB/s a device instead of "
                f"{links / 1e9:.0f}; keep tensor inside a host: {target.devices_per_host} at most, devices in order"
            )


def _hosts(target: Target, numbers: Iterable[int]) -> set[int]:
    return {int(number) // target.devices_per_host for number in numbers}
