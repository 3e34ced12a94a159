"""Histograms of what samples take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hetjax.tools.data.measured import Amount

_BINS = 60
_BEYOND = 1.5  # times the largest amount: how far away a line is drawn
_HUES = ("#2f6db3", "#8b939c", "#cf7412")


def draw_histograms(amounts: Mapping[str, Amount], sizes: Mapping[str, int], target: object | IO[bytes]) -> None:
    """Write a picture with a histogram for each amount, and what a row of the run and of `sizes` has of it.

    `target` is a path, whose suffix says the format, or an open file that becomes a PNG.
    """
    figure = Figure(figsize=(8, 2.4 * len(amounts)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, amount) in enumerate(amounts.items()):
        axes = figure.add_subplot(len(amounts), 1, place + 1)
        taken = amount.taken[amount.taken > 0]
        most = int(taken.max())
        axes.hist(
            taken, bins=np.arange(most + 2) - 0.5 if most <= _BINS else np.linspace(0, most, _BINS), color=_HUES[0]
        )
        words = []
        for size, label, hue in ((amount.has, "a row now", _HUES[1]), (sizes.get(name), "suggested", _HUES[2])):
            if not size:
                continue
            words.append(f"{label}: {size:,}")
            if size <= _BEYOND * most:  # further away it would press the histogram together
                axes.axvline(size, color=hue)
        axes.set_title("   ".join(words), loc="right", fontsize=9)
        axes.set_xlabel(amount.words)
        axes.set_ylabel("samples")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target)
