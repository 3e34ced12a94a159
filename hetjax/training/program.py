"""Train from a program of your own, with callbacks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from hetjax.config.run_config import load_config
from hetjax.training.loop import train as run_training
from hetjax.training.metrics import StepMetrics


def train(arguments: Sequence[str], *, callbacks: Sequence[object] = (), console: Console | None = None) -> StepMetrics:
    """Run train.py with these arguments from a program; returns the metrics of the last step, in the main process.

    Args:
        arguments: The words of its command line: ["--config", "configs/digits.yaml", "--steps", "20"].
        callbacks: Objects with some of the methods on_step, on_evaluate and on_save, each of which takes one event
            (`hetjax.training.callbacks`); `Callbacks` makes one of functions.
        console: Where process 0 prints; None for the terminal.

    Raises HetjaxError or PlacementError for what the user can mend, among them CallbackError for an exception in a
    callback, and SystemExit where a signal stops the run.
    """
    config, resolved = load_config(arguments)
    console = Console(soft_wrap=True, markup=False, highlight=False) if console is None else console
    return run_training(config, resolved, console=console, callbacks=callbacks)
