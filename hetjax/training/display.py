"""What a run shows in the terminal: the placement as a table, then a live bar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hetjax.meshes import format_devices
from hetjax.stages.stage import Shapes, Stage
from hetjax.trainer import Trainer


def placement_table(trainer: Trainer) -> Table:
    """One row a stage: its mesh, devices, parameters, and the memory of its state on each device."""
    table = Table(title="placement", title_justify="left")
    for heading in ("module", "mesh", "devices", "parameters", "trains", "state per device"):
        table.add_column(heading, justify="right" if heading in ("parameters", "state per device") else "left")
    for row in placement_rows(trainer):
        table.add_row(
            row["stage"],
            row["mesh"],
            format_devices(row["devices"]),
            f"{row['parameters']:,}",
            _told(row["trained_parameters"], row["parameters"]),
            format_bytes(row["bytes_per_device"]),
        )
    return table


def _told(trained: int, parameters: int) -> str:
    return "frozen" if not trained else "yes" if trained == parameters else f"{trained:,}"


def placement_rows(trainer: Trainer) -> list[dict[str, Any]]:
    """The same as numbers: one dict a stage."""
    rows = []
    for stage in trainer.stages:
        degrees = {axis: size for axis, size in stage.mesh.shape.items() if size > 1}
        rows.append(
            {
                "stage": stage.name,
                "mesh": " ".join(f"{axis}={size}" for axis, size in degrees.items()) or "one device",
                "devices": list(trainer.placement.device_numbers(stage.module, stage.index)),
                "parameters": sum(math.prod(aval.shape) for aval in stage.params.values()),
                "trains": stage.trains,
                "trained_parameters": sum(math.prod(aval.shape) for aval in stage.trained.values()),
                "bytes_per_device": state_bytes_per_device(trainer, stage),
            }
        )
    return rows


def state_bytes_per_device(trainer: Trainer, stage: Stage) -> int:
    """Bytes a device holds through a step, activations aside: weights, their cast copy, gradients, optimizer."""
    total = _bytes(stage.params) + _bytes(stage.buffers)
    if stage.trains:
        optimizer = jax.tree.leaves(trainer.updates[stage.name].opt_state)
        total += _bytes(stage.trained) + _bytes(stage.cast_params) + _bytes(dict(enumerate(optimizer)))
    return total


def _bytes(shapes: Shapes | Mapping[Any, jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(aval.sharding.shard_shape(aval.shape)) * aval.dtype.itemsize for aval in shapes.values())


def format_bytes(count: float) -> str:
    """Bytes in the largest unit that leaves 1 or more: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class LiveBar:
    """A live bar on a terminal; elsewhere a plain line every `log_every` steps."""

    def __init__(self, console: Console, *, steps: int, done: int, log_every: int):
        self.console, self.steps, self.log_every = console, steps, log_every
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("train", total=steps, completed=done, numbers="")

    def __enter__(self) -> LiveBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, row: Mapping[str, Any], times: Mapping[str, float]) -> None:
        """Show the numbers of a step, and how long each module took when last timed (seconds)."""
        parts = [
            f"loss {row['loss']:.4f}",
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"grad norm {row['grad_norm']:.3f}",
            f"lr {row['learning_rate']:.2e}",
            *(f"{module} {1000 * seconds:.1f} ms" for module, seconds in times.items()),
        ]
        if "eval/accuracy" in row:
            parts.append(f"held-out accuracy {100 * row['eval/accuracy']:.2f} %")
        numbers = " · ".join(parts)
        self._bar.update(self._task, completed=row["step"], numbers=numbers)
        due = row["step"] % self.log_every == 0 or row["step"] in (1, self.steps) or "eval/accuracy" in row
        if due and not self._live:
            self.console.print(
                f"step {row['step']}/{self.steps} · {numbers}", soft_wrap=True, highlight=False, markup=False
            )

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self.console.print(message, soft_wrap=True, highlight=False, markup=False)
