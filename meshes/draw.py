"""A picture of a placement: a column a device, a row a stage, and in each cell the device's place in the mesh."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hetjax.meshes.devices import format_devices
from hetjax.meshes.layout import AXES
from hetjax.meshes.placement import ResolvedPlacement

# A hue a module, the deep ones of a timeline; further modules start over.
_HUES = ("#2f6db3", "#cf7412", "#33843c", "#7a4fae", "#b9403c", "#1f8580", "#ad4585", "#857a1c")
_INK, _FAINT, _EMPTY = "#23282e", "#8b939c", "#f1f3f5"
_MARGIN, _HEAD = 0.25, 0.75  # inches around the grid, and above it for title and device numbers
_FONT, _SMALLEST = 9.0, 4.5  # points of the text in a cell; smaller would not be read


def draw_placement(
    placement: ResolvedPlacement, path: str | os.PathLike[str], *, title: str = "placement", devices: int | None = None
) -> None:
    """Write the picture to `path`; the suffix chooses the format (.png, .svg, .pdf).

    `devices` is how many there are, used or not; by default up to the last one used. A cell tells, for
    each axis of more than one, which of its parts the device holds: "data 1".
    """
    rows = list(_rows(placement))
    used = max(number for module in placement.grids for number in placement.device_numbers(module))
    columns = max(devices or 0, used + 1)
    lines = max(sum(size > 1 for size in placement.placement[module].mesh_shape) for module, _, _ in rows)
    width, height = _cell_size(columns, lines)
    labels = [_label(name, placement.placement[module].mesh_shape, grid) for module, name, grid in rows]
    left = _MARGIN + 0.075 * max(len(line) for label in labels for line in label)
    size = (left + columns * width + _MARGIN, _HEAD + len(rows) * height + _MARGIN)
    figure = Figure(figsize=size, dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / size[0], _MARGIN / size[1], columns * width / size[0], len(rows) * height / size[1]))
    axes.set_xlim(0, columns)
    axes.set_ylim(len(rows), 0)
    axes.axis("off")
    modules = list(placement.grids)
    for row, (module, _, grid) in enumerate(rows):
        _draw_label(axes, row, labels[row])
        coordinates = {int(number): index for index, number in np.ndenumerate(grid)}
        for column in range(columns):
            hue = _HUES[modules.index(module) % len(_HUES)]
            _draw_cell(axes, column, row, hue, grid.shape, coordinates.get(column), width)
    for column in range(columns):
        axes.annotate(
            str(column), (column + 0.5, 0), xytext=(0, 4), textcoords="offset points", ha="center", va="bottom",
            fontsize=_FONT, color=_INK, annotation_clip=False,
        )  # fmt: skip
    _above(axes, "device", -9, 4, fontsize=_FONT, color=_FAINT, ha="right")
    _above(axes, title, 1, 24, fontsize=13, fontweight="bold", color=_INK, ha="left")
    figure.savefig(path)


def _rows(placement: ResolvedPlacement) -> Iterator[tuple[str, str, np.ndarray]]:
    """(module, names of the stages, their grid of device numbers) for every mesh."""
    for module, grid in placement.grids.items():
        count = placement.placement[module].stage_count
        for mesh, part in enumerate(grid):
            stages = range(mesh, count, len(grid))
            yield module, module if count == 1 else ", ".join(f"{module}.{stage}" for stage in stages), part


def _cell_size(columns: int, lines: int) -> tuple[float, float]:
    """Inches, narrower where there are many columns."""
    width = min(0.95, max(0.58, 9.0 / columns)) if columns <= 64 else 37.0 / columns
    return width, max(0.62, 0.2 + 0.17 * lines)


def _label(name: str, shape: tuple[int, ...], grid: np.ndarray) -> tuple[str, str, str]:
    degrees = " · ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True) if size > 1) or "one device"
    return name, degrees, f"on {format_devices([int(number) for number in grid.flat])}"


def _draw_label(axes: Axes, row: int, label: tuple[str, str, str]) -> None:
    looks = (
        (13, {"fontsize": 10.5, "fontweight": "bold", "color": _INK}),
        (0, {"fontsize": 8.5, "color": _INK}),
        (-12, {"fontsize": 8.5, "color": _FAINT}),
    )
    for text, (above, look) in zip(label, looks, strict=True):
        axes.annotate(
            text, (0, row + 0.5), xytext=(-9, above), textcoords="offset points", ha="right", va="center",
            annotation_clip=False, **look,
        )  # fmt: skip


def _draw_cell(
    axes: Axes, column: int, row: int, hue: str, shape: tuple[int, ...], place: tuple[int, ...] | None, width: float
) -> None:
    """One device's part of one stage, or an empty cell where the stage is not on it."""
    box = FancyBboxPatch(
        (column + 0.1, row + 0.12),
        0.8,
        0.76,
        boxstyle="round,pad=0.04,rounding_size=0.08",
        facecolor=_EMPTY if place is None else hue,
        linewidth=0,
    )
    axes.add_patch(box)
    if place is None:
        return
    lines = [f"{axis} {index}" for axis, size, index in zip(AXES, shape, place, strict=True) if size > 1]
    longest = max((len(f"{axis} {size - 1}") for axis, size in zip(AXES, shape, strict=True) if size > 1), default=1)
    font = min(_FONT, 0.86 * width * 72 / (0.56 * longest))  # a letter is a bit more than half its height wide
    if lines and font >= _SMALLEST:
        text = "\n".join(lines)
        axes.text(
            column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=font, color="white", linespacing=1.25
        )


def _above(axes: Axes, text: str, right: float, up: float, **look: object) -> None:
    """Text above the top left corner, moved by so many points."""
    axes.annotate(
        text, (0, 0), xytext=(right, up), textcoords="offset points", va="bottom", annotation_clip=False, **look
    )
