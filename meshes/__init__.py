"""Where things run: layouts, placements, device order and hardware figures."""

from meshes.devices import format_devices, parse_devices
from meshes.errors import PlacementError
from meshes.hardware import Hardware, find_hardware
from meshes.layout import AXES, BATCH_AXES, Layout
from meshes.placement import Placement, ResolvedPlacement

__all__ = [
    "AXES",
    "BATCH_AXES",
    "Hardware",
    "Layout",
    "Placement",
    "PlacementError",
    "ResolvedPlacement",
    "find_hardware",
    "format_devices",
    "parse_devices",
]
