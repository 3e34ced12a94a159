"""Placements: a layout for every module, and the devices that it covers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from hetjax.meshes.devices import parse_devices
from hetjax.meshes.errors import PlacementError
from hetjax.meshes.layout import AXES, Layout


@dataclasses.dataclass(frozen=True)
class Placement(Mapping[str, Layout]):
    """A layout for every module. What can be checked without knowing the devices is checked here.

    Modules may share all devices (*colocated*), none (*disjoint*), or some. Raises PlacementError.
    """

    layouts: Mapping[str, Layout]

    def __post_init__(self) -> None:
        if not self.layouts:
            raise PlacementError('placement is empty; give every module a layout, e.g. {"llm": Layout(data=2)}')
        for module, layout in self.layouts.items():
            if not isinstance(layout, Layout):
                raise PlacementError(f"module '{module}': its layout is {layout!r}; give it a Layout")
            layout.validate(module)

    def __getitem__(self, module: str) -> Layout:
        return self.layouts[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layouts)

    def __len__(self) -> int:
        return len(self.layouts)

    def resolve(self, device_count: int) -> ResolvedPlacement:
        """Give every module its device numbers among `device_count` devices; touches no device.

        Raises PlacementError when a range names a device that is not there, or degrees do not fit.
        """
        grids = {}
        for module, layout in self.layouts.items():
            numbers = parse_devices(layout.devices, module=module)
            if numbers is None:
                numbers = tuple(range(device_count))
            missing = [number for number in numbers if number >= device_count]
            if missing:
                raise PlacementError(
                    f"module '{module}': devices={layout.devices!r} names device {missing[0]}, but there are "
                    f"{device_count} devices (0-{device_count - 1}); change the range, or on a machine without "
                    f"accelerators set fake_devices: {max(missing) + 1} or more"
                )
            layout.check_device_count(module, len(numbers))
            grids[module] = np.array(numbers).reshape(layout.stage, *layout.mesh_shape)
        return ResolvedPlacement(self, grids)


@dataclasses.dataclass(frozen=True)
class ResolvedPlacement:
    """A placement with device numbers: `grids[module]` has shape (stage, *AXES)."""

    placement: Placement
    grids: Mapping[str, np.ndarray]

    def device_numbers(self, module: str, stage: int | None = None) -> tuple[int, ...]:
        """Return the device numbers of a module, or of one of its stages, in mesh order."""
        grid = self.grids[module] if stage is None else self._grid(module, stage)
        return tuple(int(number) for number in grid.flat)

    def mesh(self, module: str, stage: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Build the mesh of one pipeline stage over `devices` (default: `jax.devices()`), axes as in `AXES`."""
        devices = jax.devices() if devices is None else devices
        grid = self._grid(module, stage)
        chosen = np.array([devices[number] for number in grid.flat], dtype=object).reshape(grid.shape)
        return Mesh(chosen, AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def _grid(self, module: str, stage: int) -> np.ndarray:
        """Return the grid of a stage; with several chunks a mesh, stage k is on mesh k mod the number of meshes."""
        return self.grids[module][stage % len(self.grids[module])]
