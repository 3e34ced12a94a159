"""A picture of a placement: which devices every mesh covers, and what of the mesh each device holds."""

from __future__ import annotations

import os

from hetjax.meshes.draw_devices import draw_devices
from hetjax.meshes.draw_hosts import draw_hosts
from hetjax.meshes.picture_style import mesh_rows
from hetjax.meshes.placement import ResolvedPlacement

MOST_COLUMNS = 16  # devices that have a column each; more are grouped by host


def draw_placement(
    placement: ResolvedPlacement,
    path: str | os.PathLike[str],
    *,
    title: str = "placement",
    devices: int | None = None,
    devices_per_host: int = 8,
) -> None:
    """Write the picture to `path`; the suffix chooses the format (.png, .svg, .pdf).

    Up to `MOST_COLUMNS` devices have a column each, and every mesh a row. Of more devices, those of a host share a
    tile that names the meshes on it. For each axis of more than one, the text says which of its parts a device or a
    host holds: "data 1", "data 0-3".

    Args:
        placement: what is drawn.
        path: file that is written.
        title: stands above, in as many lines as it needs.
        devices: how many there are, used or not; by default up to the last one used.
        devices_per_host: how many of them a host has.
    """
    rows = list(mesh_rows(placement))
    used = max(int(row.grid.max()) for row in rows)
    count = max(devices or 0, used + 1)
    if count <= MOST_COLUMNS:
        figure = draw_devices(rows, count, title)
    else:
        figure = draw_hosts(rows, count, title, devices_per_host=devices_per_host)
    figure.savefig(path)
