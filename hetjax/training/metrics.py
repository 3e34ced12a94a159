"""Write the metrics of a run: metrics.jsonl, what other loggers show, and a picture of the loss."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from hetjax.training.observers.loggers import Logger
from hetjax.training.run_folder import RunFolder

StepMetrics = dict[str, float]
"""The metrics of a step by name, "step" among them; counts are ints."""


class MetricsLog:
    """Appends one JSON object a step to metrics.jsonl, and gives the same numbers to other loggers.

    On a resumed run it first drops what was logged after the checkpoint, so that the file holds each
    step once. Where a line is damaged, the file as it was is kept beside it.

    Args:
        folder: The run's folder.
        resume_step: Steps that the checkpoint holds; 0 for a fresh run.
        loggers: The others, which it closes.

    Attributes:
        damaged: The lines that hold no metrics, as messages.
    """

    def __init__(self, folder: RunFolder, *, resume_step: int, loggers: Sequence[Logger] = ()):
        directory = folder.path
        self.path, self._folder = directory / "metrics.jsonl", folder
        rows, self.damaged = _parse(self.path)
        if self.damaged:
            beside = _free(self.path.with_suffix(".jsonl.damaged"))
            shutil.copyfile(self.path, beside)
            self.damaged = [f"{each}; left out, the file as it was is kept as {beside}" for each in self.damaged]
        kept = [row for row in rows if row["step"] <= resume_step]
        partial = self.path.with_suffix(".jsonl.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, self.path)
        self._file = self.path.open("a")
        self._loggers = loggers

    def write(self, metrics: StepMetrics) -> None:
        """Log the metrics of one step; they have the key "step". Raises RunFolderError where the folder is gone."""
        self._folder.check()
        self._file.write(json.dumps(metrics, allow_nan=False) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in metrics.items() if name != "step"}
        for logger in self._loggers:
            logger.log(metrics["step"], numbers)

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        for logger in self._loggers:
            logger.close()


def read_metrics(path: Path) -> list[StepMetrics]:
    """Return the metrics of each step in a metrics.jsonl, without lines that are no metrics.

    Such a line is the last one, which a killed process left unfinished, or a damaged one, which `MetricsLog` names.
    """
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[StepMetrics], list[str]]:
    """Return the metrics of each step, and the places of damaged lines."""
    rows, damaged = [], []
    # A line without an end is not damaged but unfinished.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged.append(f"{path}:{number}: no metrics of a step")
        else:
            rows.append(row)
    return rows, damaged


def _free(path: Path) -> Path:
    """Return a path that does not exist: this one, or with a number behind it."""
    return next(each for i in itertools.count() if not (each := path if i == 0 else Path(f"{path}.{i}")).exists())


def draw_loss(steps: list[StepMetrics], path: Path, *, title: str) -> None:
    """Draw the loss over the steps, with the loss and the accuracy of held-out sets where they were measured."""
    from matplotlib.figure import Figure  # only here: matplotlib takes a while to import

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    good = [step for step in steps if "loss" in step]
    axes.plot([step["step"] for step in good], [step["loss"] for step in good], linewidth=1.2, color="#1f5fa8")
    axes.set(title=title, xlabel="step", ylabel="loss (nats a token)", yscale="log")
    axes.grid(True, alpha=0.3, which="both")
    for name in _held_out(steps, "loss"):
        axes.plot(*_points(steps, name), "o--", markersize=4, label=name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    if accuracies := _held_out(steps, "accuracy"):
        right = axes.twinx()
        for name in accuracies:
            at, values = _points(steps, name)
            right.plot(at, [100 * value for value in values], "o--", color="#c2571a", label=name)
        right.set(ylabel="exact answers on held-out data (%)", ylim=(0, 102))
        right.yaxis.label.set_color("#c2571a")
    figure.savefig(path, dpi=120)


def _held_out(steps: list[StepMetrics], key: str) -> list[str]:
    """Return the names of a number of whole held-out sets: "eval/loss", or "eval/SET/loss" of sets by name."""
    names = dict.fromkeys(name for step in steps for name in step)
    found = [name for name in names if name.startswith("eval/") and name.endswith(f"/{key}") and "/blank_" not in name]
    return [name for name in found if name.count("/") <= 2]


def _points(steps: list[StepMetrics], name: str) -> tuple[list[float], list[float]]:
    having = [step for step in steps if name in step]
    return [step["step"] for step in having], [step[name] for step in having]
