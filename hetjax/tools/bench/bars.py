"""A bar chart of the times of several ways to do the same things."""

from __future__ import annotations

import os
from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hetjax.meshes.picture_style import wrap_title
from hetjax.tools.outcome import Json

_WIDTH, _TITLE_FONT = 8.0, 11.0  # inches, points
_HUES = ("#2f6db3", "#cf7412", "#8b939c")


def draw_bars(numbers: Mapping[str, Json], ways: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Write the chart of `hetjax bench boundary` to `path`: for each case a bar a way, in milliseconds."""
    cases = numbers["cases"]
    shape = ",".join(map(str, numbers["shape"]))
    title = wrap_title(f"{numbers['dtype']}[{shape}] on {numbers['device_kind']}", 0.7 * _WIDTH, font=_TITLE_FONT)
    height = 1.2 + 0.52 * len(cases) + 0.2 * title.count("\n")
    figure = Figure(figsize=(_WIDTH, height), dpi=110, layout="constrained")
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
    axes.set_title(title, loc="left", fontsize=_TITLE_FONT)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path)
