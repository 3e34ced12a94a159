"""The picture of a placement on many devices: a tile a host, and in it a band for each mesh that is on it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hetjax.meshes.devices import format_devices
from hetjax.meshes.layout import AXES
from hetjax.meshes.picture_style import (
    EMPTY,
    FAINT,
    INK,
    SMALLEST_FONT,
    TITLE_FONT,
    MeshRow,
    draw_mesh_label,
    fitting_font,
    wrap_title,
)

MOST_TILES = 32  # of more hosts, neighbours share a tile
_FEW, _FEW_COLUMNS, _COLUMNS = 16, 4, 8  # tiles in a row, of few and of many
# Inches.
_TILE, _GAP, _MARGIN = 1.35, 0.1, 0.25
_TILE_HEAD, _LINE, _PAD = 0.22, 0.13, 0.1  # device numbers above a tile; a line of a band, and what surrounds its lines
_LABEL = 0.62  # height of a mesh's label
_FONT = 7.5  # points


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tile:
    """The devices of a host (or of several), and what they hold of the meshes that are on them."""

    devices: range
    bands: tuple[tuple[MeshRow, dict[int, tuple[int, ...]]], ...]

    @property
    def height(self) -> float:
        return sum(_band_height(row) for row, _ in self.bands)


def draw_hosts(rows: Sequence[MeshRow], count: int, title: str, *, devices_per_host: int) -> Figure:
    """Draw a tile for each host of `count` devices, several in a row, beside a list of all meshes."""
    tiles = _tiles(rows, count, devices_per_host)
    columns = _FEW_COLUMNS if len(tiles) <= _FEW else _COLUMNS
    lines = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    labels = [row.label() for row in rows]
    left = _MARGIN + 0.075 * max(len(line) for label in labels for line in label) + 0.15
    width = left + min(len(tiles), columns) * (_TILE + _GAP) - _GAP + _MARGIN
    heading = wrap_title(title, width - 2 * _MARGIN)
    head = 2 * _MARGIN + 1.3 * TITLE_FONT / 72 * (heading.count("\n") + 1)
    heights = [_TILE_HEAD + max([0.4, *(tile.height for tile in line)]) for line in lines]
    height = head + max(sum(heights) + _GAP * len(heights), _LABEL * len(rows)) + _MARGIN
    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)  # so that data units are inches from the top left corner
    axes.axis("off")
    look = {"fontsize": TITLE_FONT, "fontweight": "bold", "color": INK, "linespacing": 1.3}
    axes.text(_MARGIN, _MARGIN, heading, ha="left", va="top", **look)
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = head + _LABEL * (place + 0.5)
        axes.add_patch(FancyBboxPatch((left - 0.2, y - 0.2), 0.06, 0.4, boxstyle="square,pad=0", fc=row.hue, lw=0))
        draw_mesh_label(axes, label, left - 0.12 - 0.03, y)
    top = head
    for line, line_height in zip(lines, heights, strict=True):
        for place, tile in enumerate(line):
            _draw_tile(axes, tile, left + place * (_TILE + _GAP), top, line_height)
        top += line_height + _GAP
    return figure


def _tiles(rows: Sequence[MeshRow], count: int, devices_per_host: int) -> list[_Tile]:
    hosts = math.ceil(count / devices_per_host)
    size = devices_per_host * math.ceil(hosts / MOST_TILES)
    places = [{int(number): index for index, number in np.ndenumerate(row.grid)} for row in rows]
    tiles = []
    for start in range(0, count, size):
        devices = range(start, min(start + size, count))
        held = ({d: place[d] for d in devices if d in place} for place in places)
        bands = tuple((row, found) for row, found in zip(rows, held, strict=True) if found)
        tiles.append(_Tile(devices=devices, bands=bands))
    return tiles


def _band_height(row: MeshRow) -> float:
    return _PAD + _LINE * (1 + sum(size > 1 for size in row.grid.shape))


def _draw_tile(axes: Axes, tile: _Tile, x: float, y: float, height: float) -> None:
    numbers = f"devices {format_devices(tile.devices)}"
    axes.text(x + 0.02, y + 0.1, numbers, ha="left", va="center", fontsize=_FONT, color=FAINT)
    top = y + _TILE_HEAD
    if not tile.bands:
        _draw_box(axes, x, top, _TILE, height - _TILE_HEAD, EMPTY)
    for row, held in tile.bands:
        _draw_band(axes, tile, row, held, x, top)
        top += _band_height(row)


def _draw_band(axes: Axes, tile: _Tile, row: MeshRow, held: dict[int, tuple[int, ...]], x: float, y: float) -> None:
    """One mesh on one host: a box over each stretch of neighbouring devices that it covers, its text in the widest."""
    height, slot = _band_height(row), _TILE / len(tile.devices)
    _draw_box(axes, x, y, _TILE, height, EMPTY)
    stretches = _stretches(sorted(held))
    for first, last in stretches:
        _draw_box(axes, x + (first - tile.devices[0]) * slot, y, (last + 1 - first) * slot, height, row.hue)
    first, last = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
    texts = [row.name, *_parts_held(row, held)]
    font = fitting_font(texts, (last + 1 - first) * slot, _FONT)
    if font >= SMALLEST_FONT:
        centre = x + ((first + last + 1) / 2 - tile.devices[0]) * slot
        text = "\n".join(texts)
        axes.text(centre, y + height / 2, text, ha="center", va="center", fontsize=font, color="white", linespacing=1.2)


def _parts_held(row: MeshRow, held: dict[int, tuple[int, ...]]) -> list[str]:
    """For each axis of more than one, its parts that these devices hold: "fsdp 0-3"."""
    return [
        f"{axis} {format_devices(sorted({index[dim] for index in held.values()}))}"
        for dim, (axis, size) in enumerate(zip(AXES, row.grid.shape, strict=True))
        if size > 1
    ]


def _stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each stretch of consecutive numbers."""
    gaps = [place + 1 for place, (a, b) in enumerate(itertools.pairwise(numbers)) if b != a + 1]
    bounds = [0, *gaps, len(numbers)]
    return [(numbers[start], numbers[stop - 1]) for start, stop in itertools.pairwise(bounds)]


def _draw_box(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    corner, look = (x + 0.02, y + 0.02), {"boxstyle": "round,pad=0,rounding_size=0.03", "fc": colour, "lw": 0}
    axes.add_patch(FancyBboxPatch(corner, width - 0.04, height - 0.04, **look))
