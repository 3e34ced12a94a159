"""The picture of a placement on a few devices: a column a device, a row a mesh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hetjax.meshes.layout import AXES
from hetjax.meshes.picture_style import (
    EMPTY,
    FAINT,
    FONT,
    INK,
    SMALLEST_FONT,
    TITLE_FONT,
    MeshRow,
    draw_mesh_label,
    fitting_font,
    wrap_title,
)

_MARGIN, _HEAD = 0.25, 0.75  # inches around the grid, and above it for one line of title and device numbers
_LINE = 1.3 * TITLE_FONT / 72  # inches a further line of the title takes


def draw_devices(rows: Sequence[MeshRow], count: int, title: str) -> Figure:
    """Draw a column for each of `count` devices; in each cell stands the device's place in the mesh."""
    lines = max(sum(size > 1 for size in row.grid.shape) for row in rows)
    width, height = min(0.95, max(0.58, 9.0 / count)), max(0.62, 0.2 + 0.17 * lines)
    labels = [row.label() for row in rows]
    left = _MARGIN + 0.075 * max(len(line) for label in labels for line in label)
    heading = wrap_title(title, count * width + _MARGIN)
    head = _HEAD + heading.count("\n") * _LINE
    size = (left + count * width + _MARGIN, head + len(rows) * height + _MARGIN)
    figure = Figure(figsize=size, dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / size[0], _MARGIN / size[1], count * width / size[0], len(rows) * height / size[1]))
    axes.set_xlim(0, count)
    axes.set_ylim(len(rows), 0)
    axes.axis("off")
    for place, row in enumerate(rows):
        draw_mesh_label(axes, labels[place], 0, place + 0.5)
        coordinates = {int(number): index for index, number in np.ndenumerate(row.grid)}
        for column in range(count):
            _draw_cell(axes, column, place, row, coordinates.get(column), width)
    for column in range(count):
        axes.annotate(
            str(column), (column + 0.5, 0), xytext=(0, 4), textcoords="offset points", ha="center", va="bottom",
            fontsize=FONT, color=INK, annotation_clip=False,
        )  # fmt: skip
    _above(axes, "device", -9, 4, fontsize=FONT, color=FAINT, ha="right")
    _above(axes, heading, 1, 24, fontsize=TITLE_FONT, fontweight="bold", color=INK, ha="left")
    return figure


def _draw_cell(axes: Axes, column: int, place: int, row: MeshRow, index: tuple[int, ...] | None, width: float) -> None:
    """One device's part of one mesh, or an empty cell where the mesh is not on it."""
    box = FancyBboxPatch(
        (column + 0.1, place + 0.12),
        0.8,
        0.76,
        boxstyle="round,pad=0.04,rounding_size=0.08",
        facecolor=EMPTY if index is None else row.hue,
        linewidth=0,
    )
    axes.add_patch(box)
    if index is None:
        return
    sizes = [(axis, size, part) for axis, size, part in zip(AXES, row.grid.shape, index, strict=True) if size > 1]
    if not sizes:
        return
    # By the longest text of the mesh, so that all its cells have one font.
    font = fitting_font([f"{axis} {size - 1}" for axis, size, _ in sizes], width, FONT)
    if font >= SMALLEST_FONT:
        text = "\n".join(f"{axis} {part}" for axis, _, part in sizes)
        axes.text(
            column + 0.5, place + 0.5, text, ha="center", va="center", fontsize=font, color="white", linespacing=1.25
        )


def _above(axes: Axes, text: str, right: float, up: float, **look: object) -> None:
    """Text above the top left corner, moved by so many points."""
    axes.annotate(
        text, (0, 0), xytext=(right, up), textcoords="offset points", va="bottom", annotation_clip=False, **look
    )
