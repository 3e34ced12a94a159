"""A bar chart of the times of several ways to do the same things."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_HUES = ("#2f6db3", "#cf7412", "#8b939c")


def draw_bars(numbers: Mapping[str, Any], ways: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Write the chart of `hetjax bench boundary` to `path`: for each case a bar a way, in milliseconds."""
    cases = numbers["cases"]
    figure = Figure(figsize=(8.0, 1.2 + 0.52 * len(cases)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    thickness = 0.8 / len(ways)
    for index, ((way, heading), hue) in enumerate(zip(ways.items(), _HUES, strict=True)):
        places = [row - 0.4 + thickness * (index + 0.5) for row in range(len(cases))]
        axes.barh(places, [1000 * case[way]["seconds"] for case in cases], thickness * 0.9, label=heading, color=hue)
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases])
    axes.invert_yaxis()
    axes.set_xlabel("ms, median")
    axes.spines[["top", "right"]].set_visible(False)
    shape = ",".join(map(str, numbers["shape"]))
    axes.set_title(f"{numbers['dtype']}[{shape}] on {numbers['device_kind']}", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path)
