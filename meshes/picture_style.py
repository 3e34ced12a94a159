"""What the pictures of placements have in common: colours, titles, and the labels of meshes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from hetjax.meshes.devices import format_devices
from hetjax.meshes.layout import AXES
from hetjax.meshes.placement import ResolvedPlacement

# A hue a module, the deep ones of a timeline; further modules start over.
HUES = ("#2f6db3", "#cf7412", "#33843c", "#7a4fae", "#b9403c", "#1f8580", "#ad4585", "#857a1c")
INK, FAINT, EMPTY = "#23282e", "#8b939c", "#f1f3f5"
FONT, SMALLEST_FONT = 9.0, 4.5  # points of the text in a cell; smaller would not be read
TITLE_FONT = 13.0
LABEL_WIDTH = 52  # letters


class MeshRow(NamedTuple):
    """One mesh of a placement: its module, the names of its stages, its device numbers by axis, and its colour."""

    module: str
    name: str
    grid: np.ndarray
    hue: str

    def degrees(self) -> str:
        """Return the degree of each axis of more than one: "data 2 · tensor 2"."""
        degrees = (f"{axis} {size}" for axis, size in zip(AXES, self.grid.shape, strict=True) if size > 1)
        return " · ".join(degrees) or "one device"

    def label(self) -> tuple[str, str, str]:
        """Return three lines that say what and where it is, each of at most `LABEL_WIDTH` letters."""
        where = f"on {format_devices([int(number) for number in self.grid.flat])}"
        return tuple(_shorten(line) for line in (self.name, self.degrees(), where))


def mesh_rows(placement: ResolvedPlacement) -> Iterator[MeshRow]:
    """Yield every mesh of a placement, module by module."""
    for index, (module, grid) in enumerate(placement.grids.items()):
        count = placement.placement[module].stage_count
        for mesh, part in enumerate(grid):
            stages = range(mesh, count, len(grid))
            name = module if count == 1 else ", ".join(f"{module}.{stage}" for stage in stages)
            yield MeshRow(module, name, part, HUES[index % len(HUES)])


def wrap_title(title: str, inches: float, *, font: float = TITLE_FONT) -> str:
    """Break a bold title into lines that fit a width, by what a bold letter takes at most on average."""
    letters = max(8, int(inches * 72 / (0.72 * font)))
    return textwrap.fill(title, letters, break_on_hyphens=False)


def fitting_font(lines: list[str], inches: float, largest: float) -> float:
    """Return the font in points with which lines fit a width: a letter is a bit more than half its height wide."""
    return min(largest, 0.86 * inches * 72 / (0.58 * max(map(len, lines))))


def draw_mesh_label(axes: Axes, label: tuple[str, str, str], x: float, y: float) -> None:
    """Write the lines of a label, right aligned, around a point in data units."""
    looks = (
        (13, {"fontsize": 10.5, "fontweight": "bold", "color": INK}),
        (0, {"fontsize": 8.5, "color": INK}),
        (-12, {"fontsize": 8.5, "color": FAINT}),
    )
    for text, (above, look) in zip(label, looks, strict=True):
        axes.annotate(
            text, (x, y), xytext=(-9, above), textcoords="offset points", ha="right", va="center",
            annotation_clip=False, **look,
        )  # fmt: skip


def _shorten(text: str) -> str:
    return text if len(text) <= LABEL_WIDTH else f"{text[: LABEL_WIDTH - 1]}…"
