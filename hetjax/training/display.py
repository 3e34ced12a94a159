"""Show a run in the terminal: the placement as a table, then a live bar."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hetjax.meshes import format_devices
from hetjax.stages.placed_shapes import bytes_per_device
from hetjax.stages.stage import Stage
from hetjax.trainer import Trainer
from hetjax.training.metrics import StepMetrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacementRow:
    """The mesh of a stage, and the memory of its state.

    Attributes:
        stage: Its name.
        mesh: The degrees of its mesh, such as "data=2 tensor=2".
        devices: The numbers of its devices.
        parameters: How many weights it has, over all devices.
        trains: Whether any of them trains.
        trained_parameters: How many of them train.
        bytes_per_device: Memory that its state takes on each device, activations aside.
    """

    stage: str
    mesh: str
    devices: list[int]
    parameters: int
    trains: bool
    trained_parameters: int
    bytes_per_device: int


def placement_table(trainer: Trainer) -> Table:
    """Return a table with one row a stage: its mesh, devices, parameters, memory of its state on each device."""
    table = Table(title="placement", title_justify="left")
    for heading in ("module", "mesh", "devices", "parameters", "trains", "state per device"):
        table.add_column(heading, justify="right" if heading in ("parameters", "state per device") else "left")
    for row in placement_rows(trainer):
        table.add_row(
            row.stage,
            row.mesh,
            format_devices(row.devices),
            f"{row.parameters:,}",
            _trains(row),
            format_bytes(row.bytes_per_device),
        )
    return table


def _trains(row: PlacementRow) -> str:
    if not row.trained_parameters:
        return "frozen"
    return "yes" if row.trained_parameters == row.parameters else f"{row.trained_parameters:,}"


def placement_rows(trainer: Trainer) -> list[PlacementRow]:
    """Return the same as numbers, a row for each stage."""
    return [_placement_row(trainer, stage) for stage in trainer.stages]


def _placement_row(trainer: Trainer, stage: Stage) -> PlacementRow:
    degrees = {axis: size for axis, size in stage.mesh.shape.items() if size > 1}
    return PlacementRow(
        stage=stage.name,
        mesh=" ".join(f"{axis}={size}" for axis, size in degrees.items()) or "one device",
        devices=list(trainer.placement.device_numbers(stage.module, stage.index)),
        parameters=sum(math.prod(aval.shape) for aval in stage.params.values()),
        trains=stage.trains,
        trained_parameters=sum(math.prod(aval.shape) for aval in stage.trained.values()),
        bytes_per_device=state_bytes_per_device(trainer, stage),
    )


def state_bytes_per_device(trainer: Trainer, stage: Stage) -> int:
    """Return the bytes a device holds through a step, activations aside.

    These are weights, buffers and, where the stage trains, gradients, the cast copy of weights, the optimizer's state.
    """
    held = [*stage.params.values(), *stage.buffers.values()]
    if stage.trains:
        optimizer = jax.tree.leaves(trainer.updates[stage.name].opt_state)
        held += [*stage.trained.values(), *stage.cast_params.values(), *optimizer]
    return bytes_per_device(held)


def format_bytes(count: float) -> str:
    """Return bytes in the largest unit that leaves 1 or more: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _held_out(name: str, number: float) -> str:
    """Return a number of an evaluation as the terminal shows it: "held-out accuracy 97.30 %"."""
    name = "held-out " + name.removeprefix("eval/").replace("/", " ")
    return f"{name} {100 * number:.2f} %" if name.endswith("accuracy") else f"{name} {number:.4f}"


class LiveBar:
    """Shows the metrics of steps: in a live bar on a terminal, elsewhere in a line every `log_every` steps.

    Args:
        console: Where they are shown.
        steps: Steps of the run.
        done: Steps done before.
        log_every: Steps between lines; the first and the last step, and evaluated ones, have a line too.
    """

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

    def show(self, metrics: StepMetrics, seconds: Mapping[str, float], held_out: Mapping[str, float]) -> None:
        """Show the metrics of a step, the seconds that each module took when last timed, what an evaluation found."""
        parts = [
            f"loss {metrics['loss']:.4f}",
            f"{metrics['tokens_per_second']:,.0f} tokens/s",
            f"padding {100 * metrics['padding/tokens']:.1f} %",
            f"grad norm {metrics['grad_norm']:.3f}",
            f"lr {metrics['learning_rate']:.2e}",
            *(f"{module} {1000 * taken:.1f} ms" for module, taken in seconds.items()),
        ]
        parts += [_held_out(name, number) for name, number in held_out.items()]
        numbers = " · ".join(parts)
        self._bar.update(self._task, completed=metrics["step"], numbers=numbers)
        due = metrics["step"] % self.log_every == 0 or metrics["step"] in (1, self.steps) or held_out
        if due and not self._live:
            self.console.print(
                f"step {metrics['step']}/{self.steps} · {numbers}", soft_wrap=True, highlight=False, markup=False
            )

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)
