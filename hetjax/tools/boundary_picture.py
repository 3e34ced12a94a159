"""A picture of a boundary plan: source devices left, destination devices right, and an arrow for each device pair."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from hetjax.boundary.plan import BoundaryPlan, DevicePair, PlanHop
from hetjax.boundary.tiling import Tiling, common_part
from hetjax.meshes import format_devices
from hetjax.meshes.picture_style import wrap_title

MOST = 16  # boxes in a column; of more devices, neighbours share one

FormatBytes = Callable[[int], str]
Point = tuple[float, float]

_SOURCE, _DESTINATION, _GATHER = "#2f6db3", "#cf7412", "#33843c"
_INK, _FAINT = "#23282e", "#8b939c"
_LEFT, _RIGHT = 2.1, 6.1  # inches: the two columns of boxes
_SIZE = (9.6, 0.34)  # inches: width of the picture, height of a row
_MARGIN, _TITLE_FONT = 0.2, 12.0  # inches beside the title, and its points


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Column:
    """One side: where its devices are drawn."""

    x: float
    groups: tuple[tuple[int, ...], ...]

    @property
    def row_of(self) -> dict[int, int]:
        return {device: row for row, group in enumerate(self.groups) for device in group}


def draw_plan(plan: BoundaryPlan, path: str | os.PathLike[str], *, title: str, format_bytes: FormatBytes = str) -> None:
    """Write the picture to `path`; the suffix chooses the format (.png, .svg, .pdf).

    An arrow's width is its share of the busiest device pair of its hop. Of more than `MOST` devices on a side,
    neighbours share a box, and their pairs an arrow.
    """
    source, destination = (
        _Column(x=x, groups=_groups(tiling.devices)) for x, tiling in ((_LEFT, plan.source), (_RIGHT, plan.destination))
    )
    rows = max(len(source.groups), len(destination.groups))
    heading = wrap_title(title, _SIZE[0] - 2 * _MARGIN, font=_TITLE_FONT)
    above = 1.25 + 1.3 * _TITLE_FONT / 72 * heading.count("\n")  # inches
    width, height = _SIZE[0], above + _SIZE[1] * rows
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(rows + 0.5, -above / _SIZE[1] + 0.5)
    axes.axis("off")
    look = {"fontsize": _TITLE_FONT, "fontweight": "bold", "color": _INK, "linespacing": 1.3}
    axes.text(_MARGIN, -2.05, heading, va="bottom", **look)
    for column, tiling, hue in ((source, plan.source, _SOURCE), (destination, plan.destination, _DESTINATION)):
        _draw_column(axes, column, tiling, plan.shape, hue, rows)
    for hop in plan.hops:
        _draw_hop(axes, hop, source, destination, rows, format_bytes)
    if not plan.hops:
        _head(axes, (_LEFT + _RIGHT) / 2, "every device has its part already", _INK)
    if not plan.disjoint:
        _draw_kept(axes, plan, source, destination, rows)
    figure.savefig(path)


def _groups(devices: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Group devices in ascending order into as many boxes as fit."""
    ordered, size = sorted(devices), math.ceil(len(devices) / MOST)
    return tuple(tuple(ordered[start : start + size]) for start in range(0, len(ordered), size))


def _y(column: _Column, row: int, rows: int) -> float:
    """Return the height of a row; columns of unlike numbers of boxes are spread over the same height."""
    return (row + 0.5) * rows / len(column.groups)


def _draw_column(axes: Axes, column: _Column, tiling: Tiling, shape: tuple[int, ...], hue: str, rows: int) -> None:
    left = column.x == _LEFT
    for row, group in enumerate(column.groups):
        y = _y(column, row, rows)
        box = FancyBboxPatch(
            (column.x - 0.3, y - 0.34), 0.6, 0.68, boxstyle="round,pad=0,rounding_size=0.1", facecolor=hue, linewidth=0
        )
        axes.add_patch(box)
        axes.text(column.x, y, format_devices(group), ha="center", va="center", fontsize=8, color="white")
        if len(group) == 1:
            x, align = (column.x - 0.42, "right") if left else (column.x + 1.9, "left")
            axes.text(x, y, _part(tiling, shape, group[0]), ha=align, va="center", fontsize=7.5, color=_FAINT)


def _part(tiling: Tiling, shape: tuple[int, ...], device: int) -> str:
    """Return the part of the tensor that a device holds, written as a slice."""
    bounds = []
    for size, count, index in zip(shape, tiling.counts, tiling.tile_of[device], strict=True):
        bounds.append(":" if count == 1 else f"{index * size // count}:{(index + 1) * size // count}")
    return f"[{', '.join(bounds)}]" if bounds else ""


def _draw_hop(
    axes: Axes, hop: PlanHop, source: _Column, destination: _Column, rows: int, format_bytes: FormatBytes
) -> None:
    if not hop.bytes_per_pair:
        _head(axes, _LEFT, f"{hop.name}\nsends nothing", _SOURCE)
        return
    text = f"{hop.name}\n{format_bytes(hop.bytes)} over {len(hop.bytes_per_pair)} device pairs"
    if hop.where == "destination" or hop.name == "relay":
        _head(axes, _RIGHT + 1.15, text, _GATHER)
        _draw_arcs(axes, _joined(hop.bytes_per_pair, destination, destination), destination, rows)
        return
    _head(axes, (_LEFT + _RIGHT) / 2, text, _INK)
    pairs = _joined(hop.bytes_per_pair, source, destination)
    busiest = max(pairs.values())
    for (a, b), nbytes in pairs.items():
        ends = ((source.x + 0.32, _y(source, a, rows)), (destination.x - 0.32, _y(destination, b, rows)))
        _arrow(axes, ends, nbytes / busiest, len(pairs), _SOURCE)


def _joined(pairs: Mapping[DevicePair, int], senders: _Column, receivers: _Column) -> Counter[DevicePair]:
    """Sum the bytes between rows of boxes."""
    joined: Counter[DevicePair] = Counter()
    for (sender, receiver), nbytes in pairs.items():
        joined[senders.row_of[sender], receivers.row_of[receiver]] += nbytes
    return joined


def _draw_arcs(axes: Axes, pairs: Counter[DevicePair], column: _Column, rows: int) -> None:
    """Draw what the destination's devices send each other: an arc for each device pair, both ways in one."""
    both = {(a, b): nbytes for (a, b), nbytes in pairs.items() if a < b or (a > b and (b, a) not in pairs)}
    busiest = max(both.values(), default=1)
    for (a, b), nbytes in both.items():
        start, stop = ((column.x + 0.34, _y(column, row, rows)) for row in (a, b))
        bend = min(0.9, 0.35 + 0.08 * abs(b - a)) * (1 if a > b else -1)
        style = "<|-|>" if (b, a) in pairs else "-|>"
        _arrow(axes, (start, stop), nbytes / busiest, len(both), _GATHER, style=style, bend=bend)


def _draw_kept(axes: Axes, plan: BoundaryPlan, source: _Column, destination: _Column, rows: int) -> None:
    """Draw a dotted line for every device that keeps some of what it has."""
    for device in sorted(set(plan.source.devices) & set(plan.destination.devices)):
        tiles = plan.source.tile_of[device], plan.destination.tile_of[device]
        if common_part(plan.shape, plan.source, tiles[0], plan.destination, tiles[1]):
            ends = [(column.x, _y(column, column.row_of[device], rows)) for column in (source, destination)]
            axes.plot(*zip(*ends, strict=True), linestyle=":", linewidth=1.2, color=_FAINT, zorder=0)
    axes.text(_SIZE[0] - 0.2, -1.2, "dotted: stays", fontsize=8, color=_FAINT, ha="right", va="center")


def _head(axes: Axes, x: float, text: str, color: str) -> None:
    axes.text(x, -0.95, text, fontsize=8.5, color=color, ha="center", va="center", linespacing=1.3)


def _arrow(
    axes: Axes,
    ends: tuple[Point, Point],
    share: float,
    count: int,
    color: str,
    *,
    style: str = "-|>",
    bend: float = 0.0,
) -> None:
    """Draw an arrow as wide as its share of the busiest device pair; all are thinner where there are many."""
    widest = 2.5 * min(1.0, math.sqrt(16 / count))
    arrow = FancyArrowPatch(
        *ends, arrowstyle=style, mutation_scale=5 + widest, linewidth=0.2 + widest * share, color=color, alpha=0.75,
        connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0,
    )  # fmt: skip
    axes.add_patch(arrow)
