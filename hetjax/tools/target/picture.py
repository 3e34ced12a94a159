"""A picture of what devices hold through a step, action by action of the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hetjax.fit.advice import GIB
from hetjax.fit.held import PARTS
from hetjax.fit.report import MeshNeed

# What lasts in blues, what waits in greens, what a program takes in orange, as the fills of a timeline.
_COLOURS = ("#2f6db3", "#5d8fc9", "#86aede", "#a9cbee", "#d3e3f5", "#33843c", "#b3dfb4", "#f9cf9c")
_RESERVE, _INK, _LIMIT = "#d9dde2", "#23282e", "#b9403c"
_MOST_PANELS = 8
_MOST_LABELS = 40


def draw_memory(meshes: Sequence[MeshNeed], path: Path, *, title: str) -> None:
    """Write a picture with a panel for each group of devices, the fullest first; the suffix chooses the format."""
    groups = {mesh.group.stages: mesh for mesh in sorted(meshes, key=lambda mesh: -mesh.needed)}
    shown = list(groups.values())[:_MOST_PANELS]
    figure = Figure(figsize=(13, 1.2 + 3.2 * len(shown)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, mesh in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        _draw_panel(axes, mesh)
    left = f" ({len(shown)} of {len(groups)} groups of devices)" if len(shown) < len(groups) else ""
    figure.suptitle(f"{title}{left}", x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncol=5, frameon=False, fontsize=9)
    figure.savefig(path)


def _draw_panel(axes: Axes, mesh: MeshNeed) -> None:
    moments = mesh.group.moments
    edges = np.arange(len(moments) + 1)
    below = np.zeros(len(moments))
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        held = np.array([moment.held.get(part, 0) for moment in moments]) / GIB
        axes.stairs(below + held, edges, baseline=below, fill=True, color=colour, label=part)
        below += held
    axes.stairs(below + mesh.reserve / GIB, edges, baseline=below, fill=True, color=_RESERVE, label="reserve")
    axes.axhline(mesh.capacity / GIB, color=_LIMIT, linewidth=1.2, label="the device has")
    axes.set_xlim(0, len(moments))
    axes.set_ylim(0, 1.05 * max(mesh.needed, mesh.capacity) / GIB)
    every = -(-len(moments) // _MOST_LABELS)
    places = range(0, len(moments), every)
    # A transfer's link stands behind a colon.
    labels = [f"{moments[place].action.partition(':')[0]} {moments[place].stage}" for place in places]
    axes.set_xticks([place + 0.5 for place in places], labels, rotation=60, ha="right", fontsize=6.5, color=_INK)
    axes.set_ylabel("GiB a device", fontsize=9, color=_INK)
    axes.set_title(", ".join(mesh.group.stages), loc="left", fontsize=10, fontweight="bold", color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
