"""A picture of a timeline: one lane a mesh, one box a program, one arrow a transfer."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from hetjax.schedule.actions import Kind
from hetjax.schedule.graph import StageGraph
from hetjax.schedule.simulate import Span, Timeline

# A hue a module: light for its forwards, deep for its backwards. Further modules start over.
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
_UPDATE = "#5b626b"
_INK = "#23282e"
_ARROWS = {False: "#4a525b", True: "#b9403c"}
_BOX = 0.66  # height of a box; lanes are 1 apart


def draw(
    timeline: Timeline,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    unit: Literal["units", "ms"] = "units",
) -> None:
    """Write a picture of a timeline to `path`; the suffix chooses the format (.png, .svg, .pdf).

    A box holds its microbatch's number, light for a forward and deep for a backward, in its module's hue;
    an arrow leads from where a tensor was made to where it goes. Each lane tells its stages, its
    devices and the share of the step in which they idle. `unit="ms"` takes the timeline to be in seconds.
    """
    schedule = timeline.schedule
    meshes = schedule.graph.meshes
    scale = 1e3 if unit == "ms" else 1.0
    figure = Figure(figsize=(13, 1.9 + 0.72 * len(meshes)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    span = timeline.makespan * scale or 1.0
    axes.set_xlim(-0.004 * span, 1.004 * span)
    axes.set_ylim(len(meshes) - 0.45, -0.55)
    lane_of = {stage.name: lane for lane, mesh in enumerate(meshes) for stage in mesh}
    hues = _hues(schedule.graph)
    points = figure.get_figwidth() * 0.85 * 72 / span  # on paper for one unit of time, about
    directions = _draw_arrows(axes, timeline, lane_of, scale, points)
    digits = len(str(schedule.microbatches - 1))
    for item in timeline.spans:
        if item.action.kind is not Kind.TRANSFER:
            module = schedule.graph.stage(item.stage).module
            _draw_box(axes, item, lane_of[item.stage], hues[module], scale, points, digits)
    _dress(axes, timeline, unit)
    name = title or f"{schedule.name}, {schedule.microbatches} microbatches"
    axes.set_title(name, loc="left", fontsize=13, fontweight="bold", color=_INK, pad=12)
    total = f"makespan {timeline.makespan * scale:.4g} {unit} · idle {timeline.idle_share():.1%}"
    axes.set_title(total, loc="right", fontsize=10, color=_INK, pad=12)
    _draw_legend(figure, timeline, hues, directions)
    figure.savefig(path)


def device_ranges(devices: Sequence[int]) -> str:
    """Device ids in short: (0, 1, 2, 3, 6) is "0-3,6"."""
    runs: list[list[int]] = []
    for device in sorted(devices):
        if runs and device == runs[-1][-1] + 1:
            runs[-1].append(device)
        else:
            runs.append([device])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _hues(graph: StageGraph) -> dict[str, tuple[str, str]]:
    modules = dict.fromkeys(stage.module for stage in graph.stages)
    return {module: _HUES[index % len(_HUES)] for index, module in enumerate(modules)}


def _draw_box(
    axes: Axes, span: Span, lane: int, hue: tuple[str, str], scale: float, points: float, digits: int
) -> None:
    start, length = span.start * scale, (span.end - span.start) * scale
    light, deep = hue
    face, text = {Kind.FORWARD: (light, _INK), Kind.BACKWARD: (deep, "white"), Kind.UPDATE: (_UPDATE, "white")}[
        span.action.kind
    ]
    gap = min(0.06 * length, 1.2 / points)
    box = FancyBboxPatch(
        (start + gap / 2, lane - _BOX / 2),
        length - gap,
        _BOX,
        boxstyle="square,pad=0",
        facecolor=face,
        edgecolor=deep if span.action.kind is Kind.FORWARD else face,
        linewidth=0.6,
        zorder=3,
    )
    axes.add_patch(box)
    size = min(11.0, length * points / (0.8 * digits))  # by the longest number, so that boxes of a width look alike
    if span.action.microbatch is not None and size >= 4:  # smaller would not be read
        centre, label = start + length / 2, str(span.action.microbatch)
        axes.text(centre, lane, label, ha="center", va="center_baseline", fontsize=size, color=text, zorder=4)


def _draw_arrows(axes: Axes, timeline: Timeline, lane_of: dict[str, int], scale: float, points: float) -> set[bool]:
    """Draw the transfers between lanes; returns which directions there were."""
    graph = timeline.schedule.graph
    drawn: set[bool] = set()
    for span in timeline.spans:
        if span.action.kind is not Kind.TRANSFER:
            continue
        edge = graph.edge(span.action.edge)
        here, there = lane_of[edge.source], lane_of[edge.destination]
        if span.action.backward:
            here, there = there, here
        if here == there:
            continue
        down = 1 if there > here else -1
        aside = (-1.8 if span.action.backward else 1.8) / points  # lets both directions be seen at one moment
        arrow = FancyArrowPatch(
            (span.start * scale + aside, here + down * _BOX / 2),
            (span.end * scale + aside, there - down * _BOX / 2),
            arrowstyle="-|>,head_length=2.6,head_width=1.5",
            shrinkA=0,
            shrinkB=0,
            linewidth=0.8,
            color=_ARROWS[span.action.backward],
            zorder=2 if abs(here - there) == 1 else 1,
        )
        axes.add_patch(arrow)
        drawn.add(span.action.backward)
    return drawn


def _dress(axes: Axes, timeline: Timeline, unit: str) -> None:
    """Lanes, their labels and the time axis."""
    meshes = timeline.schedule.graph.meshes
    for lane in range(len(meshes)):
        axes.axhspan(lane - _BOX / 2, lane + _BOX / 2, color="#f1f3f5", zorder=0)
    axes.set_yticks([])
    for lane, mesh in enumerate(meshes):
        where = f"devices {device_ranges(mesh[0].devices)} · " if mesh[0].devices else ""
        idle = f"{where}idle {timeline.idle_share(mesh[0].name):.0%}"
        names = ", ".join(stage.name for stage in mesh)
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


def _draw_legend(figure: Figure, timeline: Timeline, hues: dict[str, tuple[str, str]], directions: set[bool]) -> None:
    present = {(timeline.schedule.graph.stage(span.stage).module, span.action.kind) for span in timeline.spans}
    handles = [
        Patch(facecolor=hues[module][kind is Kind.BACKWARD], edgecolor=hues[module][1], label=f"{module} {kind.value}")
        for module in hues
        for kind in (Kind.FORWARD, Kind.BACKWARD)
        if (module, kind) in present
    ]
    kinds = {kind for _, kind in present}
    if Kind.UPDATE in kinds:
        handles.append(Patch(facecolor=_UPDATE, label="update"))
    for backward, label in ((False, "activation crosses"), (True, "gradient crosses")):
        if backward in directions:
            handles.append(Line2D([], [], color=_ARROWS[backward], marker=">", markersize=4, lw=1, label=label))
    columns = len(handles) if len(handles) <= 8 else min(8, math.ceil(len(handles) / 2))
    figure.legend(handles=handles, loc="outside lower center", ncol=columns, frameon=False, fontsize=9)
