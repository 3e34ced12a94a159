"""A picture of a timeline: one lane a mesh or a group of devices, one box a program, one arrow a transfer."""

from __future__ import annotations

import itertools
import math
import os
import textwrap
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from hetjax.schedule.actions import HOST_COPIES, Kind
from hetjax.schedule.graph import StageGraph
from hetjax.schedule.lanes import Lane, lanes
from hetjax.schedule.simulate import Span, Timeline

# A hue a module: light for its forwards, deep for its backwards; `_shades` makes those of the two parts of a
# backward. Further modules start over.
_HUES = (
    ("#a9cbee", "#2f6db3"),
    ("#f9cf9c", "#cf7412"),
    ("#b3dfb4", "#33843c"),
    ("#d8c4ec", "#7a4fae"),
    ("#f5b8b5", "#b9403c"),
    ("#a8e0dd", "#1f8580"),
    ("#efc3dc", "#ad4585"),
    ("#dfd9a5", "#857a1c"),
)
_LABELS = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.BACKWARD_INPUT: "backward, inputs",
    Kind.BACKWARD_WEIGHT: "backward, weights",
}
_UPDATE = "#5b626b"
_INK = "#23282e"
_ARROWS = {False: "#4a525b", True: "#b9403c"}
_COPIES = {Kind.OFFLOAD: ("#7a8087", "v", "to host memory"), Kind.RELOAD: ("#1f8580", "^", "from host memory")}
_BOX = 0.66  # height of a box; lanes are 1 apart
_TITLE_FONT, _TITLE_LETTERS = 13, 60  # points; letters of a line, beside which the makespan stands


def draw(
    timeline: Timeline,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    unit: Literal["units", "ms"] = "units",
) -> None:
    """Write a picture of a timeline to `path`; the suffix chooses the format (.png, .svg, .pdf).

    A box holds its microbatch's number, those of the loss's microbatches where it takes several at once, in its
    module's hue: light for a forward and deep for a backward; of a backward in two parts, the one for the inputs is
    darker still and the one for the weights half as deep. A lane that holds several stages of one module has a row for
    each. An arrow leads from the stage that made a tensor to the one that reads it; a strip below a lane is a copy to
    host memory or back, with a mark where it starts. Each lane is labelled with its stages, its devices and the share
    of the step in which they idle. `unit="ms"` shows a timeline in seconds in milliseconds. A long title takes several
    lines.
    """
    schedule = timeline.schedule
    rows = lanes(timeline)
    scale = 1e3 if unit == "ms" else 1.0
    name = title or schedule.label
    name = textwrap.fill(name, _TITLE_LETTERS, break_on_hyphens=False)
    height = 1.9 + 0.72 * len(rows) + 1.3 * _TITLE_FONT / 72 * name.count("\n")
    figure = Figure(figsize=(13, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    span = timeline.makespan * scale or 1.0
    axes.set_xlim(-0.004 * span, 1.004 * span)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    shades = _shades(schedule.graph)
    points = figure.get_figwidth() * 0.85 * 72 / span  # on the page for one unit of time, about
    directions = _draw_arrows(axes, timeline, rows, scale, points)
    copies = _draw_copies(axes, timeline, rows, scale)
    last = schedule.microbatches - 1
    for lane, row in enumerate(rows):
        for item in filter(row.shows, timeline.spans):
            node = schedule.graph.stage(item.stage)
            longest = len(_numbers(last // node.window, node.window))
            _draw_box(
                axes, item, _band(row, item.stage, lane), node.window, shades[node.module], scale, points, longest
            )
    _dress(axes, timeline, rows, unit)
    axes.set_title(name, loc="left", fontsize=_TITLE_FONT, fontweight="bold", color=_INK, pad=12)
    total = f"makespan {timeline.makespan * scale:.4g} {unit} · idle {timeline.idle_share():.1%}"
    axes.set_title(total, loc="right", fontsize=10, color=_INK, pad=12)
    _draw_legend(figure, timeline, shades, directions, copies)
    figure.savefig(path)


def device_ranges(devices: Sequence[int]) -> str:
    """Write device ids as ranges: (0, 1, 2, 3, 6) is "0-3,6"."""
    ranges: list[list[int]] = []
    for device in sorted(devices):
        if ranges and device == ranges[-1][-1] + 1:
            ranges[-1].append(device)
        else:
            ranges.append([device])
    return ",".join(f"{each[0]}-{each[-1]}" if len(each) > 1 else f"{each[0]}" for each in ranges)


def _shades(graph: StageGraph) -> dict[str, dict[Kind, str]]:
    """Return the colour of each kind of program, by module."""
    found = {}
    for index, module in enumerate(dict.fromkeys(stage.module for stage in graph.stages)):
        light, deep = _HUES[index % len(_HUES)]
        found[module] = {
            Kind.FORWARD: light,
            Kind.BACKWARD: deep,
            Kind.BACKWARD_INPUT: _blend(deep, "#000000", 0.35),
            Kind.BACKWARD_WEIGHT: _blend(light, deep, 0.5),
            Kind.UPDATE: _UPDATE,
        }
    return found


def _blend(one: str, other: str, share: float) -> str:
    """Mix two colours, with a share of the other."""
    parts = zip(to_rgb(one), to_rgb(other), strict=True)
    return to_hex([(1 - share) * a + share * b for a, b in parts])


def _band(lane: Lane, stage: str, place: int) -> tuple[float, float]:
    """Return the middle and the height of the boxes of a stage: several stages of one module share a lane's height."""
    module = next(node.module for node in lane.stages if node.name == stage)
    names = [node.name for node in lane.stages if node.module == module]
    height = _BOX / len(names)
    return place - _BOX / 2 + height * (names.index(stage) + 0.5), height


def _draw_box(
    axes: Axes,
    span: Span,
    band: tuple[float, float],
    window: int,
    shades: dict[Kind, str],
    scale: float,
    points: float,
    longest: int,
) -> None:
    start, length = span.start * scale, (span.end - span.start) * scale
    middle, height = band
    kind = span.action.kind
    face, text = shades[kind], _INK if kind in (Kind.FORWARD, Kind.BACKWARD_WEIGHT) else "white"
    gap = min(0.06 * length, 1.2 / points)
    box = FancyBboxPatch(
        (start + gap / 2, middle - height / 2),
        length - gap,
        height,
        boxstyle="square,pad=0",
        facecolor=face,
        edgecolor=shades[Kind.BACKWARD] if kind is Kind.FORWARD else face,
        linewidth=0.6,
        zorder=3,
    )
    axes.add_patch(box)
    size = min(
        11.0, 24 * height, length * points / (0.8 * longest)
    )  # by the longest number, so that boxes of a width look alike
    if span.action.microbatch is not None and size >= 4:  # smaller would not be read
        centre, label = start + length / 2, _numbers(span.action.microbatch, window)
        axes.text(centre, middle, label, ha="center", va="center_baseline", fontsize=size, color=text, zorder=4)


def _numbers(microbatch: int, window: int) -> str:
    """Return the numbers of the loss's microbatches in one of a stage."""
    return str(microbatch) if window == 1 else f"{microbatch * window}-{(microbatch + 1) * window - 1}"


def _draw_arrows(axes: Axes, timeline: Timeline, rows: Sequence[Lane], scale: float, points: float) -> set[bool]:
    """Draw the transfers between stages that share no lane; return the directions drawn (True for gradients)."""
    graph = timeline.schedule.graph
    lanes_of = {stage.name: [lane for lane, row in enumerate(rows) if stage in row.stages] for stage in graph.stages}
    drawn: set[bool] = set()
    for span in timeline.spans:
        if span.action.kind is not Kind.TRANSFER:
            continue
        edge = graph.edge(span.action.edge)
        ends = itertools.product(lanes_of[edge.source], lanes_of[edge.destination])
        start, end = min(ends, key=lambda pair: abs(pair[0] - pair[1]))
        if start == end:
            continue
        if span.action.backward:
            start, end = end, start
        down = 1 if end > start else -1
        aside = (-1.8 if span.action.backward else 1.8) / points  # lets both directions be seen at one moment
        arrow = FancyArrowPatch(
            (span.start * scale + aside, start + down * _BOX / 2),
            (span.end * scale + aside, end - down * _BOX / 2),
            arrowstyle="-|>,head_length=2.6,head_width=1.5",
            shrinkA=0,
            shrinkB=0,
            linewidth=0.8,
            color=_ARROWS[span.action.backward],
            zorder=2 if abs(start - end) == 1 else 1,
        )
        axes.add_patch(arrow)
        drawn.add(span.action.backward)
    return drawn


def _draw_copies(axes: Axes, timeline: Timeline, rows: Sequence[Lane], scale: float) -> set[Kind]:
    """Draw the host copies below the lanes of their stages; return the kinds drawn."""
    spans = [span for span in timeline.spans if span.action.kind in HOST_COPIES]
    for span in spans:
        colour, mark, _ = _COPIES[span.action.kind]
        for lane, row in enumerate(rows):
            if span.stage in {stage.name for stage in row.stages}:
                place = lane + _BOX / 2 + (0.05 if span.action.kind is Kind.OFFLOAD else 0.11)
                axes.plot([span.start * scale, span.end * scale], [place, place], color=colour, lw=2.5, zorder=5)
                axes.plot([span.start * scale], [place], color=colour, marker=mark, markersize=4, zorder=5)
    return {span.action.kind for span in spans}


def _dress(axes: Axes, timeline: Timeline, rows: Sequence[Lane], unit: str) -> None:
    """Draw the lanes, their labels and the time axis."""
    for lane in range(len(rows)):
        axes.axhspan(lane - _BOX / 2, lane + _BOX / 2, color="#f1f3f5", zorder=0)
    axes.set_yticks([])
    for lane, row in enumerate(rows):
        noun = "device" if len(row.device_ids) == 1 else "devices"
        where = f"{noun} {device_ranges(row.device_ids)} · " if row.device_ids else ""
        idle = f"{where}idle {timeline.idle_share_of(row.devices):.0%}"
        names = str(row)
        for text, below, look in ((names, 6, {"fontsize": 10.5, "fontweight": "bold"}), (idle, -7, {"fontsize": 8.5})):
            axes.annotate(
                text,
                (0, lane),
                xycoords=("axes fraction", "data"),
                xytext=(-9, below),
                textcoords="offset points",
                ha="right",
                va="center",
                color=_INK,
                **look,
            )
    axes.tick_params(axis="x", colors=_INK, labelsize=9)
    axes.set_xlabel(f"time ({unit})", fontsize=9.5, color=_INK)
    axes.grid(axis="x", color="#d9dde2", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _draw_legend(
    figure: Figure,
    timeline: Timeline,
    shades: dict[str, dict[Kind, str]],
    directions: set[bool],
    copies: set[Kind],
) -> None:
    present = {(timeline.schedule.graph.stage(span.stage).module, span.action.kind) for span in timeline.spans}
    handles = [
        Patch(facecolor=shades[module][kind], edgecolor=shades[module][Kind.BACKWARD], label=f"{module} {label}")
        for module in shades
        for kind, label in _LABELS.items()
        if (module, kind) in present
    ]
    kinds = {kind for _, kind in present}
    if Kind.UPDATE in kinds:
        handles.append(Patch(facecolor=_UPDATE, label="update"))
    for backward, label in ((False, "activation crosses"), (True, "gradient crosses")):
        if backward in directions:
            handles.append(Line2D([], [], color=_ARROWS[backward], marker=">", markersize=4, lw=1, label=label))
    handles += [
        Line2D([], [], color=colour, marker=mark, markersize=4, lw=2.5, label=label)
        for kind, (colour, mark, label) in _COPIES.items()
        if kind in copies
    ]
    columns = len(handles) if len(handles) <= 8 else min(8, math.ceil(len(handles) / 2))
    figure.legend(handles=handles, loc="outside lower center", ncol=columns, frameon=False, fontsize=9)
