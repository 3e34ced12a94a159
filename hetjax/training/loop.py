"""One training run, from its settings to its last checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import hetjax
from hetjax.checkpoint import Checkpoints
from hetjax.checkpoint.warm_start import differences, open_warm_start
from hetjax.cluster import AgreedStop
from hetjax.cluster.job import Job, join_job
from hetjax.config.build import (
    batch_shapes,
    build_graph,
    build_trainer,
    learning_rate,
    prompt_shapes,
    tokens_per_image,
    use_devices,
)
from hetjax.config.build_processor import make_processor, tokenizer_of
from hetjax.config.run_config import TrainConfig
from hetjax.data import HostBatch, Tokenizer, eval_batches, train_data
from hetjax.data.chat import OmniTokenizer, Processor
from hetjax.errors import DataError, DivergenceError
from hetjax.execution.action_timer import Stopwatch, rounded
from hetjax.generation.evaluate import EvalResult, evaluate
from hetjax.generation.generator import Generator
from hetjax.stages.batch import check_batch, rows_needed
from hetjax.state.train_state import TrainState
from hetjax.trainer import Trainer
from hetjax.training.display import LiveBar, placement_table
from hetjax.training.metrics import MetricsLog, draw_loss, read_metrics
from hetjax.training.prepare_data import check_data, make_demo_data


def train(config: TrainConfig, resolved: str, *, console: Console) -> dict[str, Any]:
    """Train to the last step, going on from the newest checkpoint in the run's folder; the last metrics.

    `resolved` is the settings as YAML, kept in the folder. In a job of several processes every one calls this, and
    process 0 prints, logs and draws for all; the others return no metrics. Raises HetjaxError or PlacementError.
    """
    with join_job(peer_timeout=config.peer_timeout, join_timeout=config.join_timeout) as job:
        return _train(config, resolved, job, _console_of(job, config, console))


def _console_of(job: Job, config: TrainConfig, console: Console) -> Console:
    """Where this process prints: only the first one of a job does, and the others into files if asked for."""
    if job.speaks:
        return console
    if not config.log_every_process:
        return Console(quiet=True)
    Path(config.directory).mkdir(parents=True, exist_ok=True)
    log = (Path(config.directory) / f"process-{job.process}.log").open("a", buffering=1)
    return Console(file=log, soft_wrap=True, markup=False, highlight=False)


def _train(config: TrainConfig, resolved: str, job: Job, console: Console) -> dict[str, Any]:
    use_devices(config, job.processes)
    processor = make_processor(config.data, config.model)
    tokenizer = tokenizer_of(config.data, config.model, processor)
    for what, package in (("jax", jax), ("hetjax", hetjax)):
        job.agree(f"version of {what}", package.__version__)
    job.agree("config", hashlib.sha256(resolved.encode()).hexdigest()[:16])
    make_demo_data(config, job, console)
    if job.speaks:
        check_data(config, tokenizer, console, processor)
    trainer = build_trainer(config, build_graph(config))
    check_batch(trainer.stages, config.data.batch_size, config.microbatches)
    job.agree("schedule", trainer.schedule.digest()[:16])
    console.print(placement_table(trainer))
    directory = Path(config.directory)
    directory.mkdir(parents=True, exist_ok=True)
    generator = Generator(
        trainer,
        max_new_tokens=config.eval.max_new_tokens,
        stop_token=tokenizer.stop_ids,
        sampling=config.eval.sampling,
    )
    answering = generator.trace(prompt_shapes(config, config.eval.batch_size)) if config.data.eval else {}
    # Restored before anything is compiled: a checkpoint that does not fit is told at once.
    run = _Run(config, trainer, generator, (tokenizer, processor), directory, console, job)
    try:
        with job.unlimited("compiling"):
            trainer.compile(batch_shapes(config), progress=console.is_terminal, also=answering)
        # Nobody starts a program that a slower process has yet to compile: its first messages would time out.
        # The schedule once more: by now it may have been chosen by what programs cost.
        job.agree("compiled step", trainer.schedule.digest()[:16])
        # Only now: a refused command leaves the settings of the run as they were.
        if job.speaks:
            (directory / "config.yaml").write_text(resolved)
        return run.to_the_end()
    finally:
        # A checkpoint may still be on its way.
        with job.unlimited("closing"):
            run.close()


class _DataEnded(DataError):
    """There is no further batch."""


@dataclasses.dataclass
class _Pending:
    """A step whose metrics are still on the devices."""

    row: dict[str, Any]
    metrics: dict[str, jax.Array]


class _Run:
    """The loop. Metrics are read one step late, so that the devices always have a step to work on."""

    def __init__(
        self,
        config: TrainConfig,
        trainer: Trainer,
        generator: Generator,
        language: tuple[Tokenizer | OmniTokenizer, Processor | None],
        directory: Path,
        console: Console,
        job: Job,
    ):
        self.config, self.trainer, self.generator = config, trainer, generator
        self.tokenizer, self.processor = language
        self.directory, self.console, self.job = directory, console, job
        self.data = train_data(config.data, self.tokenizer, tokens_per_image(config), self._rows(), self.processor)
        self.checkpoints = Checkpoints(directory / "checkpoints", keep=config.keep_checkpoints, trainer=trainer)
        # All of them ahead: computed in the loop, each would wait for the device behind the step's programs.
        self.learning_rates = np.asarray(
            jax.vmap(learning_rate(config.optimizer, config.steps))(np.arange(config.steps))
        )
        self.times: dict[str, float] = {}
        self.bad_samples = 0
        self._steps_here = 0
        self.state = self._first_state()
        self.log = MetricsLog(directory, resume_step=self.state.step) if job.speaks else None

    def _rows(self) -> tuple[int, ...] | None:
        """The rows of a batch that this process loads; None for all."""
        if self.job.processes == 1:
            return None
        takes = batch_shapes(self.config)
        fed = [stage for stage in self.trainer.stages if set(stage.inputs) & set(takes.get(stage.module, ()))]
        return rows_needed(fed, self.config.data.batch_size, self.config.microbatches)

    def _first_state(self) -> TrainState:
        step = self.checkpoints.latest_step()
        self.job.agree("checkpoint to start from", str(step))
        with self.job.unlimited("making the first state"):
            return self._fresh() if step is None else self._restored()

    def _fresh(self) -> TrainState:
        warm_start = open_warm_start(self.config.warm_start, tuple(self.trainer.graph.modules))
        for module in self.trainer.graph.modules if warm_start else ():
            source = warm_start[module].name if module in warm_start else f"the seed {self.config.seed}"
            self.console.print(f"{module} starts from {source}")
        for module, source in warm_start.items():
            for difference in differences(source, module, self.config.model.components[module]):
                self.console.print(f"note: its weights were made for another setting: model.{module}.{difference}")
        return self.trainer.init(self.config.seed, warm_start=warm_start)

    def _restored(self) -> TrainState:
        state, extra = self.checkpoints.restore()
        self.data.set_state(extra["data"])
        self.bad_samples = extra["bad_samples"]
        self.console.print(f"resuming after step {state.step} from {self.checkpoints.directory}")
        return state

    def to_the_end(self) -> dict[str, Any]:
        """Train, evaluate, save, draw; returns the last row of metrics. A signal to stop saves and exits with 130."""
        config = self.config
        bar = LiveBar(self.console, steps=config.steps, done=self.state.step, log_every=config.log_every)
        with bar, self.job.stop() as stop:
            self._train(bar, stop)
        with self.job.unlimited("writing a checkpoint"):
            self.checkpoints.wait()
        rows = read_metrics(self.log.path) if self.log is not None else []
        if rows:
            draw_loss(rows, self.directory / "loss.png", title=config.name)
        if self.state.step < config.steps:
            self.console.print(f"stopped after step {self.state.step}; run the same command to go on")
            raise SystemExit(130)
        self.console.print(f"done: metrics, curves and checkpoints are in {self.directory}")
        return rows[-1] if rows else {}

    def _train(self, bar: LiveBar, stop: AgreedStop) -> None:
        config = self.config
        batches = self._batches()
        pending: _Pending | None = None
        self._clock = time.perf_counter()
        while self.state.step < config.steps and not stop.reached(self.state.step):
            self.job.at(self.state.step + 1, -1, "its batch")
            try:
                batch = next(batches)
            except DataError as error:
                # A checkpoint takes all processes, and all come here only at the end of the data.
                if self.job.processes == 1 or isinstance(error, _DataEnded):
                    self._save(pending, bar)
                    with self.job.unlimited("writing a checkpoint"):
                        self.checkpoints.wait()
                raise
            pending, before = self._step(batch, bar), pending
            if before is not None:
                self._report(before, bar)
            step = self.state.step
            if step == config.steps or (config.eval.every and step % config.eval.every == 0):
                self._evaluate(pending, bar)
            if step == config.steps or step % config.checkpoint_every == 0:
                self._save(pending, bar)
                pending = None
        # Here, not in the loop: a signal may come at any moment of it.
        if pending is not None:
            self._save(pending, bar)

    def _batches(self) -> Iterator[HostBatch]:
        yield from self.data
        raise _DataEnded(
            f"the data ended after {self.state.step} of {self.config.steps} steps (data.epochs = "
            f"{self.config.data.epochs}); raise data.epochs, set it to null to repeat forever, or lower steps"
        )

    def _step(self, batch: HostBatch, bar: LiveBar) -> _Pending:
        for bad in batch.bad:
            bar.say(f"skipped a bad sample: {bad}")
        self.bad_samples += len(batch.bad)
        step = self.state.step + 1
        row = {"step": step, "epoch": batch.epoch, "bad_samples": self.bad_samples}
        row["learning_rate"] = float(self.learning_rates[step - 1])
        self._steps_here += 1
        # The first steps of a process still warm up: time the third, and then one in so many.
        due = self.config.profile_every and (self._steps_here - 3) % self.config.profile_every == 0
        with self.job.unlimited("waiting for the devices"):
            stopwatch = Stopwatch().start(self.state) if due else None
        announce = functools.partial(self.job.before_action, step) if self.job.processes > 1 else None
        self.state, metrics = self.trainer.step(self.state, batch.arrays, observe=stopwatch, announce=announce)
        if stopwatch is not None:
            self.times = stopwatch.by_module(self.trainer.schedule.graph)
            row |= rounded(self.times)
        return _Pending(row, metrics)

    def _report(self, pending: _Pending, bar: LiveBar) -> None:
        """Read a step's metrics, which waits for that step, and log them."""
        with self.job.unlimited("waiting for the devices"):
            numbers = {name: float(value) for name, value in pending.metrics.items()}
        if not all(map(math.isfinite, numbers.values())):
            raise DivergenceError(
                f"step {pending.row['step']}: the loss is {numbers['loss']}, the gradient norm {numbers['grad_norm']}; "
                "lower optimizer.learning_rate or max_grad_norm; the same command goes on from the last checkpoint"
            )
        now = time.perf_counter()
        tokens = self.config.data.batch_size * self.config.data.seq_len
        row = {**pending.row, **numbers, "tokens_per_second": round(tokens / (now - self._clock), 1)}
        self._clock = now
        if self.log is not None:
            self.log.write(row)
        bar.show(row, self.times)

    def _evaluate(self, pending: _Pending, bar: LiveBar) -> None:
        if self.config.data.eval is None:
            return
        with self.job.unlimited("evaluating"):
            jax.block_until_ready(pending.metrics)
            started = time.perf_counter()
            result = self._answers()
        # Answering is no part of the training speed.
        self._clock += time.perf_counter() - started
        for bad in result.bad:
            bar.say(f"skipped a bad held-out sample: {bad}")
        pending.row["eval/accuracy"] = result.accuracy

    def _answers(self) -> EvalResult:
        config = self.config
        batches = eval_batches(
            config.data, self.tokenizer, tokens_per_image(config), config.eval.batch_size, self.processor
        )
        return evaluate(self.generator, self.state, batches, self.tokenizer)

    def _save(self, pending: _Pending | None, bar: LiveBar) -> None:
        # The step's line is on disk before its checkpoint, so that a resumed run never lacks one.
        if pending is not None:
            self._report(pending, bar)
        with self.job.unlimited("writing a checkpoint"):
            self.checkpoints.save(self.state, {"data": self.data.get_state(), "bad_samples": self.bad_samples})

    def close(self) -> None:
        """Stop the data threads and close the files."""
        self.data.close()
        if self.log is not None:
            self.log.close()
        self.checkpoints.close()
