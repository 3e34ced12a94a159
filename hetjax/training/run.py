"""A run that is ready for its steps, and what happens to it between them: evaluations and checkpoints."""

from __future__ import annotations

import dataclasses

import jax

from hetjax.cluster.agree import gather
from hetjax.cluster.job import AGREE_SECONDS, Job
from hetjax.config.run_config import TrainConfig
from hetjax.errors import DivergenceError
from hetjax.training.callbacks import EvaluateEvent, Events, SaveEvent
from hetjax.training.observers.profile import StepProfile
from hetjax.training.prepare import Parts, Progress
from hetjax.training.report import PendingStep, Reporter
from hetjax.training.utilisation import Utilisation


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
        profile: Profiles some steps.
    """

    config: TrainConfig
    job: Job
    parts: Parts
    progress: Progress
    reporter: Reporter
    utilisation: Utilisation
    events: Events
    profile: StepProfile


def evaluate(run: Run, pending: PendingStep) -> bool:
    """Evaluate on the held-out samples, if any, after the step that is pending; returns whether that is the best."""
    config = run.config
    if config.data.eval is None:
        return False
    blank = config.eval.blank if pending.step == config.steps else ()
    with run.job.unlimited("evaluating"):
        jax.block_until_ready(pending.metrics)
        with run.reporter.untimed():
            found = run.progress.evaluated = run.parts.evaluator.evaluate(run.progress.state, blank=blank)
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
    with run.job.unlimited("calling callbacks"), run.reporter.untimed():
        run.events.on_evaluate(event)
    if not run.progress.best.is_best(pending.step, pending.headline):
        return False
    run.reporter.message(f"best checkpoint so far: {run.progress.best.best}")
    return True


def save_at_once(run: Run, pending: PendingStep | None) -> None:
    """Save the steps so far, and wait until the checkpoint is written."""
    save(run, pending)
    with run.job.unlimited("writing a checkpoint"):
        run.parts.checkpoints.wait()


def save(run: Run, pending: PendingStep | None) -> None:
    """Report the step that is pending, if any, and begin to write a checkpoint."""
    # The step's line is on disk before its checkpoint, so that a resumed run never lacks one.
    if pending is not None:
        run.reporter.report(pending)
    run.parts.folder.check()
    _check_weights(run)
    with run.job.unlimited("writing a checkpoint"), run.reporter.untimed():
        run.parts.checkpoints.wait()
    report_save(run)  # of the one before, which is complete, and which this one may delete
    with run.job.unlimited("writing a checkpoint"), run.reporter.untimed():
        extra = {
            "data": run.parts.data.get_state(),
            "bad_samples": run.progress.bad_samples,
            "steps": run.config.steps,
            "skipped_steps": run.reporter.skipped,
            "dataset": dict(run.progress.dataset),
            "bases": dict(run.progress.bases),
            "best": run.progress.best.to_json(),
        }
        best = run.progress.best.best
        run.parts.checkpoints.save(run.progress.state, extra, keep_beside=None if best is None else best.step)
        if best is not None and run.job.is_main:
            run.progress.best.write(run.parts.folder.path)
    run.progress.saving = run.progress.state.step


def _check_weights(run: Run) -> None:
    """Raise DivergenceError, in all processes, where the weights are not fit to be saved."""
    if not run.config.bad_steps:
        return
    state = run.progress.state
    with run.job.waiting_for_devices():
        found = gather(", ".join(run.parts.trainer.without_measure(state)), timeout=AGREE_SECONDS)
    bad = ", ".join(dict.fromkeys(stage for names in found if names for stage in names.split(", ")))
    if bad:
        saved = run.parts.checkpoints.latest_step()
        begin = "begin anew" if saved is None else f"go on from the checkpoint of step {saved} with --resume changed"
        raise DivergenceError(
            f"step {state.step}: the weights of {bad} are no finite numbers, or too large to compute with, and are not "
            f"saved; lower optimizer.learning_rate and {begin}"
        )


def report_save(run: Run) -> None:
    """Call the callbacks for the checkpoint that was being written, where it is complete by now."""
    step, checkpoints = run.progress.saving, run.parts.checkpoints
    if step is not None and checkpoints.is_complete(step):
        run.progress.saving = None
        path = checkpoints.directory / str(step)
        with run.job.unlimited("calling callbacks"), run.reporter.untimed():
            run.events.on_save(SaveEvent(step=step, path=path, is_main=run.job.is_main))
