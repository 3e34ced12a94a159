"""The pictures of a run's page, as data URIs: curves, placement, timelines."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from hetjax.meshes import ResolvedPlacement
from hetjax.schedule import Timeline
from hetjax.training.metrics import StepMetrics

# Panels of the curves: a title, and the names of metrics that it shows by how they begin.
_PANELS = (
    ("loss (nats a token)", ("loss", "eval/loss")),
    ("gradient norm", ("grad_norm",)),
    ("learning rate", ("learning_rate",)),
    ("tokens a second, without padding", ("tokens_per_second",)),
    ("TFLOP/s, over all devices", ("tflops_per_second",)),
    ("model FLOPs utilisation", ("mfu",)),
    ("seconds by module, timed one by one", ("seconds/",)),
    ("idle share by module", ("idle/",)),
    ("padding, share", ("padding/",)),
)
_MOST_LINES = 8
_RATES = (_PANELS[3][0], _PANELS[4][0], _PANELS[5][0])
_LOGARITHMIC = (_PANELS[0][0], _PANELS[1][0])
_WIDTH, _HEIGHT, _COLUMNS = 4.6, 2.7, 3  # inches of a panel


def curves(steps: Sequence[StepMetrics]) -> str:
    """Return the curves of the metrics over the steps: a panel for each kind, and one for what evaluations found."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only here: matplotlib takes a while to import
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for step in steps for name in step))
    panels = [(title, [name for name in names if _belongs(name, keys)]) for title, keys in _PANELS]
    panels.append(("held-out answers", [name for name in names if name.startswith("eval/") and not _is_loss(name)]))
    panels = [(title, own[:_MOST_LINES]) for title, own in panels if own]
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _WIDTH, rows * _HEIGHT), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, own) in enumerate(panels):
        axes = figure.add_subplot(rows, _COLUMNS, place + 1)
        for name in own:
            points = [(step["step"], step[name]) for step in steps if name in step]
            marker = "o" if len(points) < len(steps) else None
            axes.plot(*zip(*points, strict=True), linewidth=1.2, marker=marker, markersize=3, label=name)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(True, alpha=0.3)
        if title in _LOGARITHMIC and all(step[own[0]] > 0 for step in steps if own[0] in step):
            axes.set_yscale("log")
        if title in _RATES:
            # Where the host ran ahead, one step shows the time of two, and the next one hardly any.
            axes.set_ylim(0, 2 * median(step[own[0]] for step in steps if own[0] in step))
        if len(own) > 1:
            axes.legend(fontsize=7)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return _uri(target.getvalue())


def _belongs(name: str, keys: tuple[str, ...]) -> bool:
    if "eval/loss" in keys and _is_loss(name):
        return True
    return any(name.startswith(key) if key.endswith("/") else name == key for key in keys)


def _is_loss(name: str) -> bool:
    return name.startswith("eval/") and name.endswith("/loss")


def placement_picture(placement: ResolvedPlacement, title: str) -> str:
    """Return the picture of a placement."""
    from hetjax.meshes.draw import draw_placement

    return _drawn(lambda path: draw_placement(placement, path, title=title))


def timeline_picture(timeline: Timeline, title: str, *, unit: str) -> str:
    """Return the picture of a timeline."""
    from hetjax.schedule.draw import draw

    return _drawn(lambda path: draw(timeline, path, title=title, unit=unit))


def _drawn(draw: Callable[[Path], None]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return _uri(path.read_bytes())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
