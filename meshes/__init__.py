"""Where things run: layouts, placements, device order and hardware figures."""

from hetjax.meshes.devices import format_devices, parse_devices
from hetjax.meshes.errors import PlacementError
from hetjax.meshes.hardware import Hardware, find_hardware
from hetjax.meshes.layout import AXES, BATCH_AXES, Layout
from hetjax.meshes.local_devices import is_described, local_devices
from hetjax.meshes.placement import Placement, ResolvedPlacement

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
    "is_described",
    "local_devices",
    "parse_devices",
]
