"""Train: prepare a run, step to its end, evaluate, save and report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import jax
import yaml
from rich.console import Console

from hetjax.cluster.agreed_stop import AgreedStop
from hetjax.cluster.job import Job, join_job
from hetjax.config.build import assumed_packings
from hetjax.config.run_config import TrainConfig
from hetjax.data import HostBatch
from hetjax.errors import DataError
from hetjax.execution.action_timer import ActionTimer
from hetjax.stages.routed_link import LinkTraffic
from hetjax.training.callbacks import EvaluateEvent, Events, SaveEvent
from hetjax.training.loggers import Logger, check_loggers, open_loggers
from hetjax.training.memory import memory_held, memory_lines
from hetjax.training.metrics import StepMetrics, draw_loss, read_metrics
from hetjax.training.prepare import Parts, Progress, compile_programs, first_progress, open_parts
from hetjax.training.report import PendingStep, Reporter, console_of_process
from hetjax.training.resume import SETTINGS_FILE, settings_to_keep
from hetjax.training.run_folder import RunFolder
from hetjax.training.utilisation import Utilisation, busy_seconds


def train(config: TrainConfig, resolved: str, *, console: Console, callbacks: Sequence[object] = ()) -> StepMetrics:
    """Train to the last step, going on from the newest checkpoint in the run's folder; returns the last metrics.

    In a job of several processes every one calls this, and process 0 prints, logs and draws for all; the others return
    no metrics. A signal to stop finishes the step, saves and exits with 130. The run's folder belongs to the job
    meanwhile.

    Args:
        config: The settings of the run.
        resolved: The same as YAML, kept in the run's folder.
        console: Where process 0 prints.
        callbacks: What is called at the events of the run (`hetjax.training.callbacks`).

    Raises HetjaxError or PlacementError.
    """
    events = Events(callbacks)
    check_loggers(config.loggers)
    with join_job(peer_timeout=config.peer_timeout, join_timeout=config.join_timeout) as job:
        console = console_of_process(job, config, console)
        with open_parts(config, resolved, job, console) as parts:
            # Restored before anything is compiled: a checkpoint that does not fit is reported at once.
            progress = first_progress(parts, config, resolved, job, console)
            if progress.state.step >= config.steps:
                return _nothing_to_do(config, parts.folder, progress, console, is_main=job.is_main)
            compile_programs(parts, config, job, console)
            # Only now: a refused command leaves the settings of the run as they were.
            if job.is_main:
                (parts.folder.path / SETTINGS_FILE).write_text(settings_to_keep(resolved))
            utilisation = Utilisation(parts.trainer, assumed_packings(config.data, config.model))
            reporter = Reporter(
                config,
                job,
                parts.folder,
                console,
                done=progress.state.step,
                loggers=_loggers(config, resolved, parts.folder, progress.state.step) if job.is_main else (),
                utilisation=utilisation,
                events=events,
            )
            with contextlib.closing(reporter):
                return _to_the_end(Run(config, job, parts, progress, reporter, utilisation, events))


def _loggers(config: TrainConfig, resolved: str, folder: RunFolder, done: int) -> list[Logger]:
    settings = yaml.safe_load(resolved)
    project = config.logger_project
    return open_loggers(config.loggers, folder.path, name=config.name, project=project, settings=settings, done=done)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready for its steps.

    Attributes:
        config: The settings.
        job: This process's place among those of the run.
        parts: Trainer, data, generator and checkpoints.
        progress: The training state, and what was counted so far.
        reporter: Prints and logs.
        utilisation: Counts the FLOPs of steps.
        events: Calls the callbacks.
    """

    config: TrainConfig
    job: Job
    parts: Parts
    progress: Progress
    reporter: Reporter
    utilisation: Utilisation
    events: Events


class _DataEnded(DataError):
    """There is no further batch."""


def _nothing_to_do(
    config: TrainConfig, folder: RunFolder, progress: Progress, console: Console, *, is_main: bool
) -> StepMetrics:
    """Say that a run has ended, before anything is compiled; returns the last metrics, in the main process."""
    console.print(
        f"the run in {folder.path} has ended: its checkpoint is of step {progress.state.step} of {config.steps}; raise "
        "steps to go on"
    )
    if not is_main:
        return {}
    steps = read_metrics(folder.path / "metrics.jsonl")
    if steps and not (folder.path / "loss.png").exists():  # its last process was killed between the two
        draw_loss(steps, folder.path / "loss.png", title=config.name)
    return steps[-1] if steps else {}


def _to_the_end(run: Run) -> StepMetrics:
    """Step until the end or a signal, and wait for the last checkpoint."""
    with run.reporter.training(), run.job.stop() as stop:
        _train(run, stop)
    with run.job.unlimited("writing a checkpoint"):
        run.parts.checkpoints.wait()
    _tell_of_save(run)
    if run.progress.best.best is not None:
        run.reporter.message(f"best checkpoint: {run.progress.best.best}")
    return run.reporter.finish(run.progress.state.step)


def _train(run: Run, stop: AgreedStop) -> None:
    """Step; metrics are read one step late, so that the devices always have a step to work on."""
    config, progress = run.config, run.progress
    batches = _batches(run)
    pending: PendingStep | None = None
    while progress.state.step < config.steps and not stop.reached(progress.state.step):
        run.job.before_batch(progress.state.step + 1)
        asked = time.perf_counter()
        try:
            batch = next(batches)
        except DataError as error:
            # A checkpoint takes all processes, and all reach this only at the end of the data.
            if run.job.processes == 1 or isinstance(error, _DataEnded):
                _save_at_once(run, pending)
            raise
        waited = time.perf_counter() - asked
        pending, before = train_step(run, batch), pending
        pending.data_wait = waited
        _tell_of_save(run)
        if before is not None:
            run.reporter.report(before, following=pending)
        if progress.steps_here == 3:
            _report_memory(run)
        step = progress.state.step
        is_best = False
        if step == config.steps or (config.eval.every and step % config.eval.every == 0):
            try:
                is_best = _evaluate(run, pending)
            except DataError:  # in all processes: each reads every held-out sample
                _save_at_once(run, pending)
                raise
        if step == config.steps or step % config.checkpoint_every == 0 or is_best:
            _save(run, pending)
            pending = None
    # Here, not in the loop: a signal may come at any moment of it.
    if pending is not None:
        _save(run, pending)


def _report_memory(run: Run) -> None:
    """Print what the devices held in the first steps of this process, where the backend counts it."""
    held = memory_held(run.parts.trainer)
    for line in memory_lines(run.parts.trainer, held) if held else ():
        run.reporter.message(line)


def _batches(run: Run) -> Iterator[HostBatch]:
    yield from run.parts.data
    raise _DataEnded(
        f"the data ended after {run.progress.state.step} of {run.config.steps} steps (data.epochs = "
        f"{run.config.data.epochs}); raise data.epochs, set it to null to repeat forever, or lower steps"
    )


def train_step(run: Run, batch: HostBatch) -> PendingStep:
    """Dispatch a step, and time its programs where that is due; returns its metrics, which are still on the devices."""
    trainer, progress, every = run.parts.trainer, run.progress, run.config.profile_every
    for bad in batch.bad:
        run.reporter.message(f"skipped a bad sample: {bad}")
    progress.bad_samples += len(batch.bad)
    progress.steps_here += 1
    step = progress.state.step + 1
    # The first steps of a process still warm up: time the third, and then one in so many.
    due = every and (progress.steps_here - 3) % every == 0
    with run.job.unlimited("waiting for the devices"):
        timer = ActionTimer().start(progress.state) if due else None
    began = time.perf_counter()
    announce = functools.partial(run.job.before_action, step) if run.job.processes > 1 else None
    progress.state, metrics = trainer.step(progress.state, batch.arrays, observe=timer, announce=announce)
    return PendingStep(
        step=step,
        epoch=batch.epoch,
        bad_samples=progress.bad_samples,
        learning_rate=float(run.parts.learning_rates[step - 1]),
        metrics=metrics,
        of_batch={**batch.metrics, **_traffic(trainer.traffic)},
        began=began,
        samples=batch.samples,
        tokens=batch.use.tokens,
        padding=batch.padding,
        seconds={} if timer is None else timer.by_module(trainer.schedule.graph),
        busy={} if timer is None else busy_seconds(timer, trainer.schedule.graph),
        flops=run.utilisation.flops(batch.arrays),
    )


def _traffic(traffic: Mapping[str, LinkTraffic]) -> StepMetrics:
    """Return the bytes of balanced tokens by the port that they leave: those that had to move, those that were sent,
    and those that a boundary without routes would move."""
    totals: Counter[str] = Counter()
    for link, moved in traffic.items():
        for what, number in moved._asdict().items():
            totals[f"{link.partition('->')[0]}/bytes_{what}"] += number
    return dict(totals)


def _evaluate(run: Run, pending: PendingStep) -> bool:
    """Evaluate on the held-out samples, if any, after the step that is pending; returns whether that is the best."""
    config = run.config
    if config.data.eval is None:
        return False
    blank = config.eval.blank if pending.step == config.steps else ()
    with run.job.unlimited("evaluating"):
        jax.block_until_ready(pending.metrics)
        with run.reporter.untimed():
            found = run.parts.evaluator.evaluate(run.progress.state, blank=blank)
    for each in found:
        for note in each.notes:
            run.reporter.message(note)
        if each.given is not None and (config.eval.by is not None or blank):
            run.reporter.table(each.table())
        if each.given is not None and config.eval.answers and run.job.is_main:
            each.save(run.parts.folder.path / "answers", pending.step)
        pending.headline |= each.headline
        pending.held_out |= each.numbers
    event = EvaluateEvent(
        step=pending.step,
        numbers=pending.held_out,
        results=found,
        state=run.progress.state,
        is_main=run.job.is_main,
    )
    with run.reporter.untimed():
        run.events.on_evaluate(event)
    if not run.progress.best.is_best(pending.step, pending.headline):
        return False
    run.reporter.message(f"best checkpoint so far: {run.progress.best.best}")
    return True


def _save_at_once(run: Run, pending: PendingStep | None) -> None:
    """Save the steps so far, and wait until the checkpoint is written."""
    _save(run, pending)
    with run.job.unlimited("writing a checkpoint"):
        run.parts.checkpoints.wait()


def _save(run: Run, pending: PendingStep | None) -> None:
    """Report the step that is pending, if any, and begin to write a checkpoint."""
    # The step's line is on disk before its checkpoint, so that a resumed run never lacks one.
    if pending is not None:
        run.reporter.report(pending)
    run.parts.folder.check()
    with run.job.unlimited("writing a checkpoint"), run.reporter.untimed():
        extra = {
            "data": run.parts.data.get_state(),
            "bad_samples": run.progress.bad_samples,
            "steps": run.config.steps,
            "best": run.progress.best.to_json(),
        }
        best = run.progress.best.best
        run.parts.checkpoints.save(run.progress.state, extra, keep_beside=None if best is None else best.step)
        if best is not None and run.job.is_main:
            run.progress.best.write(run.parts.folder.path)
    _tell_of_save(run)  # of the one before, which is complete now, if that was not told yet
    run.progress.saving = run.progress.state.step


def _tell_of_save(run: Run) -> None:
    """Call the callbacks for the checkpoint that was being written, where it is complete by now."""
    step, checkpoints = run.progress.saving, run.parts.checkpoints
    if step is not None and checkpoints.is_complete(step):
        run.progress.saving = None
        path = checkpoints.directory / str(step)
        with run.reporter.untimed():
            run.events.on_save(SaveEvent(step=step, path=path, is_main=run.job.is_main))
