"""Report what a training run does: its metrics in the folder, lines or a live bar in the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from hetjax.cluster.job import Job
from hetjax.config.run_config import TrainConfig
from hetjax.errors import DivergenceError
from hetjax.execution.action_timer import rounded
from hetjax.training.display import LiveBar
from hetjax.training.metrics import MetricsLog, StepMetrics, draw_loss, read_metrics


@dataclasses.dataclass(kw_only=True)
class PendingStep:
    """A step whose metrics are still on the devices.

    Attributes:
        step: Its number, from 1.
        epoch: The pass over the data that its batch is of.
        bad_samples: Samples that were skipped so far.
        learning_rate: The learning rate of its update.
        metrics: What the trainer returned, scalars by name.
        seconds: How long each module took, where this step was timed.
        data_wait: Seconds for which it waited for its batch.
        accuracies: Shares of held-out questions answered right after it, from 0 to 1, by metric, where it was
            evaluated.
    """

    step: int
    epoch: int
    bad_samples: int
    learning_rate: float
    metrics: dict[str, Float[jax.Array, ""]]
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    data_wait: float = 0.0
    accuracies: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def known(self) -> StepMetrics:
        """Return the numbers that the host knows without waiting for the devices."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "bad_samples": self.bad_samples,
            "learning_rate": self.learning_rate,
            "data_wait": round(self.data_wait, 6),
            **rounded(self.seconds),
            **self.accuracies,
        }


class Reporter:
    """Writes the metrics of a run and shows them; in processes other than the main one it keeps no metrics.

    Args:
        config: The settings of the run.
        job: The job, whose main process keeps the metrics.
        console: Where lines or the bar are printed.
        done: Steps done before; what was logged of later ones is dropped.
    """

    def __init__(self, config: TrainConfig, job: Job, console: Console, *, done: int):
        self._name, self._directory, self._steps = config.name, Path(config.directory), config.steps
        self._job, self._console = job, console
        self._tokens = config.data.batch_size * config.data.seq_len
        self._log = MetricsLog(self._directory, resume_step=done) if job.is_main else None
        self._bar = LiveBar(console, steps=config.steps, done=done, log_every=config.log_every)
        self._seconds: dict[str, float] = {}
        self._last = 0.0
        self._waited = self._trained = 0.0

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A block of steps: the bar is shown, and the clock of the training speed starts."""
        with self._bar:
            self._last = time.perf_counter()
            yield

    def report(self, pending: PendingStep) -> None:
        """Read the metrics of a step, which waits for that step, write and show them.

        Raises DivergenceError where one is no finite number.
        """
        with self._job.unlimited("waiting for the devices"):
            numbers = {name: float(value) for name, value in pending.metrics.items()}
        if not all(map(math.isfinite, numbers.values())):
            raise DivergenceError(
                f"step {pending.step}: the loss is {numbers['loss']}, the gradient norm {numbers['grad_norm']}; "
                "lower optimizer.learning_rate or max_grad_norm; the same command goes on from the last checkpoint"
            )
        now = time.perf_counter()
        metrics = {**pending.known(), **numbers, "tokens_per_second": round(self._tokens / (now - self._last), 1)}
        self._waited += pending.data_wait
        self._trained += now - self._last
        self._last = now
        if self._log is not None:
            self._log.write(metrics)
        self._seconds = pending.seconds or self._seconds
        self._bar.show(metrics, self._seconds)

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.message(text)

    def table(self, table: Table) -> None:
        """Print a table above the bar."""
        self._bar.console.print(table)

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """A block that does not count for the training speed."""
        started = time.perf_counter()
        yield
        self._last += time.perf_counter() - started

    def finish(self, step: int) -> StepMetrics:
        """Draw the loss and print how the run ended after `step`; returns the last metrics, in the main process.

        Raises SystemExit with 130 where a signal stopped it before its last step.
        """
        steps = read_metrics(self._log.path) if self._log is not None else []
        if steps:
            draw_loss(steps, self._directory / "loss.png", title=self._name)
        if step < self._steps:
            self._console.print(f"stopped after step {step}; run the same command to go on")
            raise SystemExit(130)
        if self._trained:
            self._console.print(f"waiting for data took {100 * self._waited / self._trained:.2f} % of the steps' time")
        self._console.print(f"done: metrics, curves and checkpoints are in {self._directory}")
        return steps[-1] if steps else {}

    def close(self) -> None:
        """Close the files."""
        if self._log is not None:
            self._log.close()


def console_of_process(job: Job, config: TrainConfig, console: Console) -> Console:
    """Return where this process prints: the main one to `console`, others nowhere or to a log in the run's folder."""
    if job.is_main:
        return console
    if not config.log_every_process:
        return Console(quiet=True)
    Path(config.directory).mkdir(parents=True, exist_ok=True)
    log = (Path(config.directory) / f"process-{job.process}.log").open("a", buffering=1)
    return Console(file=log, soft_wrap=True, markup=False, highlight=False)
