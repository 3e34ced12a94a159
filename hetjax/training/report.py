"""Report what a training run does: its metrics in the folder, lines or a live bar in the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import jax
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from hetjax.cluster.exit_codes import STOPPED
from hetjax.cluster.job import Job
from hetjax.config.run_config import TrainConfig
from hetjax.execution.action_timer import rounded
from hetjax.training.bad_steps import BadSteps
from hetjax.training.callbacks import Events, StepEvent
from hetjax.training.display import LiveBar
from hetjax.training.metrics import MetricsLog, StepMetrics, draw_loss, read_metrics
from hetjax.training.observers.loggers import Logger
from hetjax.training.run_folder import RunFolder
from hetjax.training.utilisation import Utilisation, idle_shares


@dataclasses.dataclass(kw_only=True)
class PendingStep:
    """A step whose metrics are still on the devices.

    Attributes:
        step: Its number, from 1.
        epoch: The pass over the data that its batch is of.
        bad_samples: Samples that were skipped so far.
        learning_rate: The learning rate of its update.
        metrics: What the trainer returned, scalars by name.
        began: When its dispatch began, by `time.perf_counter`.
        samples: Samples of its batch.
        tokens: Their tokens, without padding.
        padding: Share of padding in what its rows have of each resource, from 0 to 1.
        of_batch: What the host knows of its batch: how even balanced media are, and the bytes that they moved.
        seconds: How long each module took, where this step was timed.
        busy: How long the devices of each module ran programs, where this step was timed.
        flops: FLOPs that it needs, over all devices.
        data_wait: Seconds for which it waited for its batch.
        square_sums: Sums of squares of its gradients, by stage of this process.
        held_out: What was found on held-out samples right after it, by name, where it was evaluated.
        headline: Those of them that are of whole sets, which the terminal shows.
    """

    step: int
    epoch: int
    bad_samples: int
    learning_rate: float
    metrics: dict[str, Float[jax.Array, ""]]
    began: float
    samples: int
    tokens: int
    padding: Mapping[str, float]
    of_batch: StepMetrics = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    busy: dict[str, float] = dataclasses.field(default_factory=dict)
    flops: int = 0
    data_wait: float = 0.0
    square_sums: Mapping[str, Float[jax.Array, ""]] = dataclasses.field(default_factory=dict)
    held_out: StepMetrics = dataclasses.field(default_factory=dict)
    headline: StepMetrics = dataclasses.field(default_factory=dict)

    def known(self) -> StepMetrics:
        """Return the numbers that the host knows without waiting for the devices."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "bad_samples": self.bad_samples,
            "learning_rate": self.learning_rate,
            **self.of_batch,
            "samples": self.samples,
            "tokens": self.tokens,
            **{f"padding/{name}": round(share, 4) for name, share in self.padding.items()},
            "data_wait": round(self.data_wait, 6),
            **rounded(self.seconds),
            **self.held_out,
        }


class Reporter:
    """Writes the metrics of a run and shows them; in processes other than the main one it keeps no metrics.

    Args:
        config: The settings of the run.
        job: The job, whose main process keeps the metrics.
        folder: The run's folder.
        console: Where lines or the bar are printed.
        done: Steps done before; what was logged of later ones is dropped.
        skipped: Those of them that were skipped.
        loggers: Where the metrics go beside, in the main process.
        utilisation: Says what FLOPs are of the devices' peak.
        events: Calls the callbacks of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        job: Job,
        folder: RunFolder,
        console: Console,
        *,
        done: int,
        skipped: int = 0,
        loggers: Sequence[Logger],
        utilisation: Utilisation,
        events: Events,
    ):
        self._name, self._folder, self._steps = config.name, folder, config.steps
        self._bad = BadSteps(config.bad_steps, total=skipped)
        self._job, self._console, self._utilisation, self._events = job, console, utilisation, events
        self._log = MetricsLog(folder, resume_step=done, loggers=loggers) if job.is_main else None
        for line in self._log.damaged if self._log is not None else ():
            console.print(line, markup=False)
        self._bar = LiveBar(console, steps=config.steps, done=done, log_every=config.log_every)
        self._seconds: dict[str, float] = {}
        self._ended = 0.0  # when the last step that was reported came to its end
        self._waited = self._trained = 0.0
        # How long the last steps took whose programs were not timed; where the host ran ahead, one has the time of two.
        self._untimed_steps: deque[float] = deque(maxlen=9)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A block of steps: the bar is shown, and the clock of the training speed starts."""
        with self._bar:
            self._ended = time.perf_counter()
            yield

    def report(self, pending: PendingStep, *, following: PendingStep | None = None) -> None:
        """Read the metrics of a step, which waits for that step, write and show them.

        `following` is the step that was dispatched behind it, if any. A step that is done when its metrics are asked
        for had its end before: on devices that run programs as they are dispatched (a CPU), as the next began.

        Raises DivergenceError where one is no finite number, in more steps in a row than `bad_steps` allows.
        """
        is_done = all(value.is_ready() for value in pending.metrics.values())
        with self._job.waiting_for_devices():
            numbers = {name: float(value) for name, value in pending.metrics.items()}
            wrong = self._bad.check(pending.step, numbers, pending.square_sums)
        if wrong is not None:
            self.message(f"step {pending.step} is skipped, the weights stay as they were: {wrong}")
        ended = following.began if is_done and following is not None else time.perf_counter()
        taken = max(ended - self._ended, 1e-9)
        metrics = {**pending.known(), **numbers, "tokens_per_second": round(pending.tokens / taken, 1)}
        if pending.busy:
            metrics |= idle_shares(pending.busy, median(self._untimed_steps)) if self._untimed_steps else {}
        else:
            # A timed step waits for each program, so that its rate says nothing.
            metrics |= self._utilisation.of(pending.flops, taken)
            self._untimed_steps.append(taken)
        if self._bad.total:
            metrics["skipped_steps"] = self._bad.total
        self._waited += pending.data_wait
        self._trained += ended - self._ended
        self._ended = ended
        if self._log is not None:
            self._log.write({name: each for name, each in metrics.items() if math.isfinite(each)})
        self._seconds = pending.seconds or self._seconds
        self._bar.show(metrics, self._seconds, pending.headline)
        with self._job.unlimited("calling callbacks"), self.untimed():
            self._events.on_step(StepEvent(step=pending.step, metrics=metrics, is_main=self._job.is_main))

    @property
    def skipped(self) -> int:
        """Return the steps that were skipped so far, as far as they are reported."""
        return self._bad.total

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
        self._ended += time.perf_counter() - started

    def finish(self, step: int) -> StepMetrics:
        """Draw the loss and print how the run ended after `step`; returns the last metrics, in the main process.

        Raises SystemExit with 130 where a signal stopped it before its last step, and RunFolderError where the folder
        is gone.
        """
        self._folder.check()
        steps = read_metrics(self._log.path) if self._log is not None else []
        if steps:
            draw_loss(steps, self._folder.path / "loss.png", title=self._name)
        if step < self._steps:
            self._console.print(f"stopped after step {step}; run the same command to go on")
            raise SystemExit(STOPPED)
        if self._trained:
            self._console.print(f"waiting for data took {100 * self._waited / self._trained:.2f} % of the steps' time")
        self._console.print(f"done: metrics, curves and checkpoints are in {self._folder.path}")
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
