"""Train: prepare a run, step to its end, evaluate, save and report."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

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
from hetjax.training.callbacks import Events
from hetjax.training.memory import memory_held, memory_lines
from hetjax.training.metrics import StepMetrics, draw_loss, read_metrics
from hetjax.training.observers.loggers import Logger, check_loggers, open_loggers
from hetjax.training.observers.profile import StepProfile
from hetjax.training.prepare import Parts, Progress, compile_programs, first_progress, open_parts
from hetjax.training.report import PendingStep, Reporter, console_of_process
from hetjax.training.resume import SETTINGS_FILE, settings_to_keep
from hetjax.training.run import Run, evaluate, report_save, save, save_at_once
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
    timeouts = {"peer_timeout": config.peer_timeout, "join_timeout": config.join_timeout}
    with join_job(**timeouts, step_timeout=config.step_timeout) as job:
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
                skipped=progress.skipped_steps,
                loggers=_loggers(config, resolved, parts.folder, progress.state.step) if job.is_main else (),
                utilisation=utilisation,
                events=events,
            )
            with contextlib.closing(reporter):
                profile = StepProfile(config.profile, parts.folder.path, reporter.message)
                with contextlib.closing(profile):
                    step = _to_the_end(Run(config, job, parts, progress, reporter, utilisation, events, profile))
                if config.report and job.is_main:
                    _write_page(config, resolved, parts, progress, job)
                return reporter.finish(step)


def _loggers(config: TrainConfig, resolved: str, folder: RunFolder, done: int) -> list[Logger]:
    settings = yaml.safe_load(resolved)
    project = config.logger_project
    return open_loggers(config.loggers, folder.path, name=config.name, project=project, settings=settings, done=done)


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


def _write_page(config: TrainConfig, resolved: str, parts: Parts, progress: Progress, job: Job) -> None:
    """Write the report of a run, in the main process."""
    parts.folder.check()
    steps = read_metrics(parts.folder.path / "metrics.jsonl")
    if not steps:
        return
    from hetjax.training.report_page import RunReport, write_report  # only here: a run may do without pictures

    best = progress.best.best
    report = RunReport(
        name=config.name,
        settings=resolved,
        total_steps=config.steps,
        steps=steps,
        trainer=parts.trainer,
        timer=progress.timer if job.processes == 1 else None,
        evaluated=progress.evaluated,
        best=None if best is None else str(best),
    )
    with job.unlimited("writing the report"):
        write_report(report, parts.folder.path)


def _to_the_end(run: Run) -> int:
    """Step until the end or a signal, and wait for the last checkpoint; returns the last step."""
    with run.reporter.training(), run.job.stop() as stop:
        _train(run, stop)
    with run.job.unlimited("writing a checkpoint"):
        run.parts.checkpoints.wait()
    report_save(run)
    if run.progress.best.best is not None:
        run.reporter.message(f"best checkpoint: {run.progress.best.best}")
    return run.progress.state.step


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
                save_at_once(run, pending)
            raise
        waited = time.perf_counter() - asked
        pending, before = train_step(run, batch), pending
        pending.data_wait = waited
        if run.job.processes == 1:  # of several, each would see the end of a write at another step
            report_save(run)
        if before is not None:
            run.reporter.report(before, following=pending)
        if progress.steps_here == 3:
            _report_memory(run)
        step = progress.state.step
        is_best = False
        if step == config.steps or (config.eval.every and step % config.eval.every == 0):
            try:
                is_best = evaluate(run, pending)
            except DataError:  # in all processes: each reads every held-out sample
                save_at_once(run, pending)
                raise
        if step == config.steps or step % config.checkpoint_every == 0 or is_best:
            save(run, pending)
            pending = None
    # Here, not in the loop: a signal may come at any moment of it.
    if pending is not None:
        save(run, pending)


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
    # A profile shows steps as they are, with nothing waited for.
    due = every and (progress.steps_here - 3) % every == 0 and not run.profile.takes(step)
    with run.job.waiting_for_devices():
        timer = ActionTimer().start(progress.state) if due else None
    began = time.perf_counter()
    announce = functools.partial(run.job.before_action, step) if run.job.processes > 1 else None
    with run.profile.step(step, progress.state, announce) as hooks:
        progress.state, metrics = trainer.step(
            progress.state, batch.arrays, observe=timer or hooks.observe, announce=hooks.announce
        )
    with run.job.unlimited("writing a profile"):
        run.profile.after(step, progress.state)
    progress.timer = timer or progress.timer
    return PendingStep(
        step=step,
        epoch=batch.epoch,
        bad_samples=progress.bad_samples,
        # The optimizer does not count the steps that were skipped.
        learning_rate=float(run.parts.learning_rates[step - 1 - run.reporter.skipped]),
        metrics=metrics,
        square_sums=trainer.square_sums,
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
