"""Prepare a training run: its data, trainer, generator and first state, agreed on by all processes, and compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

import hetjax
from hetjax.checkpoint import Checkpoints
from hetjax.checkpoint.frozen_bases import Stamps, base_stamps
from hetjax.checkpoint.warm_start import differences, open_warm_start
from hetjax.cluster.job import Job
from hetjax.compilation.compilation_cache import use_compilation_cache
from hetjax.compilation.gpu_options import gpu_options
from hetjax.config.build import (
    batch_shapes,
    build_trainer,
    use_devices,
)
from hetjax.config.build_loader import check_blank, make_loader
from hetjax.config.build_optimizer import learning_rate
from hetjax.config.run_config import TrainConfig
from hetjax.data import BatchesAhead, SampleLoader, TrainData
from hetjax.evaluation.evaluator import Evaluator
from hetjax.evaluation.results import SetResult
from hetjax.execution.action_timer import ActionTimer
from hetjax.optimizers.schedules import rest_of_schedule
from hetjax.stages.batch import check_batch, rows_needed, shard_rows
from hetjax.state.train_state import TrainState
from hetjax.state.weight_source import WeightSource
from hetjax.trainer import Trainer
from hetjax.training.batch_shapes import choose_batch_shapes
from hetjax.training.best_checkpoint import BestStep
from hetjax.training.display import placement_table
from hetjax.training.prepare_data import check_data, make_demo_data
from hetjax.training.resume import compare_bases, compare_datasets, fingerprints, start_or_resume
from hetjax.training.run_folder import RunFolder, own_folder

# T steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a training run.

    Attributes:
        folder: The run's folder, which the job owns.
        loader: Loads the samples to train and to evaluate on.
        trainer: Runs the steps.
        evaluator: Evaluates on held-out samples, on the meshes of training.
        evaluating: What remains to compile of its programs, by name; empty without held-out data.
        data: The batches of this process.
        checkpoints: Those of the run's folder.
        learning_rates: The learning rate of every step, for the metrics.
    """

    folder: RunFolder
    loader: SampleLoader
    trainer: Trainer
    evaluator: Evaluator
    evaluating: Mapping[str, Callable[[], object]]
    data: BatchesAhead
    checkpoints: Checkpoints
    learning_rates: Float[np.ndarray, " T"]


@dataclasses.dataclass(kw_only=True)
class Progress:
    """The state of a run between its steps, and what it counts.

    Attributes:
        state: The training state, which each step replaces.
        bad_samples: Samples that were skipped so far.
        dataset: Fingerprints of the sources of training samples, by their names; in process 0 alone.
        bases: Stamps of the weights beside low-rank maps; in process 0 alone.
        skipped_steps: Bad steps before this process, which changed nothing.
        steps_here: Steps since this process started.
        best: Follows the best step by a number of the evaluations.
        saving: The step of a checkpoint that callbacks do not know of yet; None for none.
        timer: The times of the programs of the last step that was timed.
        evaluated: What the last evaluation found.
    """

    state: TrainState
    best: BestStep
    bad_samples: int = 0
    dataset: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bases: Stamps = dataclasses.field(default_factory=dict)
    skipped_steps: int = 0
    steps_here: int = 0
    saving: int | None = None
    timer: ActionTimer | None = None
    evaluated: tuple[SetResult, ...] = ()


@contextlib.contextmanager
def open_parts(config: TrainConfig, resolved: str, job: Job, console: Console) -> Iterator[Parts]:
    """Make the parts of a run, and stop the data threads and close the files behind the block.

    Nothing is compiled yet. `resolved` is the settings as YAML, which all processes must share.
    Raises HetjaxError or PlacementError for settings, data or devices that do not fit.
    """
    use_devices(config.fake_devices, (config.param_dtype, config.compute_dtype), processes=job.processes)
    cache = use_compilation_cache(config.compilation_cache, jax.devices()[0])
    if cache is not None:
        console.print(f"compiled programs are kept in {cache}")
    loader = _prepare_samples(config, resolved, job, console)
    trainer = build_trainer(config)
    check_batch(trainer.stages, config.data.batch_size, trainer.microbatches)
    job.agree("schedule", trainer.schedule.digest()[:16])
    console.print(placement_table(trainer))
    if any(stage.window.size > 1 for stage in trainer.stages):
        console.print(f"schedule {trainer.schedule.label}")
    if options := gpu_options(trainer.devices[0]):
        nested = dict.fromkeys(stage.module for stage in trainer.stages if stage.nests_layers)
        aside = f"; not for the layers of {', '.join(nested)}" if nested else ""
        console.print("compiler options:", ", ".join(f"{name}={value}" for name, value in options.items()) + aside)
    with contextlib.closing(own_folder(Path(config.directory), is_main=job.is_main)) as folder:
        evaluator = Evaluator(trainer, loader, config.eval)
        parts = Parts(
            folder=folder,
            loader=loader,
            trainer=trainer,
            evaluator=evaluator,
            evaluating=evaluator.tasks(),
            data=BatchesAhead(
                TrainData(_training_loader(trainer, config, loader, console), _rows_of_process(trainer, config, job)),
                workers=config.data.workers,
            ),
            checkpoints=Checkpoints(folder.path / "checkpoints", keep=config.keep_checkpoints, trainer=trainer),
            # All of them ahead: computed in the loop, each would wait for the device behind the step's programs.
            learning_rates=np.asarray(jax.vmap(learning_rate(config.optimizer, config.steps))(np.arange(config.steps))),
        )
        try:
            yield parts
        finally:
            # A checkpoint may still be under way.
            with job.unlimited("closing"):
                parts.data.close()
                parts.checkpoints.close()


def first_progress(parts: Parts, config: TrainConfig, resolved: str, job: Job, console: Console) -> Progress:
    """Restore the newest checkpoint of the run's folder, or make a fresh state where it has none.

    Raises CheckpointError or ConfigError for a checkpoint or weights that do not fit the model, and for settings that
    are not those of the run.
    """
    best = BestStep(config.best_checkpoint, parts.evaluator.sets)
    if job.is_main:
        for line in start_or_resume(parts.folder, resolved, config.resume, overwrite=config.overwrite):
            console.print(line)
    job.agree("decision to resume", "")  # nobody looks for checkpoints before those to overwrite are gone
    dataset = fingerprints(config.data) if job.is_main else {}
    # Opened once, where it is needed: opening compares the checksums of a run's checkpoint.
    opened = functools.cache(lambda: open_warm_start(config.warm_start, tuple(parts.trainer.graph.modules)))
    bases = base_stamps(opened(), config.model.lora) if job.is_main and config.model.lora else {}
    step = parts.checkpoints.latest_step()
    job.agree("checkpoint to start from", str(step))
    with job.unlimited("making the first state"):
        if step is None:
            state = _fresh_state(parts.trainer, config, opened(), console)
            return Progress(state=state, best=best, dataset=dataset, bases=bases)
        state, extra = parts.checkpoints.restore(lambda: _fresh_state(parts.trainer, config, opened(), console))
        if job.is_main:
            lines = compare_datasets(extra.get("dataset", {}), dataset, config.resume)
            for line in (*lines, *compare_bases(extra.get("bases", {}), bases, config.resume)):
                console.print(line)
        job.agree("decision about the dataset")
        parts.data.set_state(extra["data"])
        console.print(f"resuming after step {state.step} from {parts.checkpoints.directory}")
        _print_changed_schedule(config, state.step, extra.get("steps"), console)
        best.resume(extra.get("best"))
        if job.is_main:
            best.write(parts.folder.path)  # a job that was killed may have named a step that it did not save
        return Progress(
            state=state,
            best=best,
            bad_samples=extra["bad_samples"],
            skipped_steps=extra.get("skipped_steps", 0),
            dataset=dataset,
            bases=bases,
        )


def _print_changed_schedule(config: TrainConfig, done: int, before: int | None, console: Console) -> None:
    """Print what the learning rate will be where a run goes on with another number of steps than it had."""
    if before is None or before == config.steps or done >= config.steps:
        return
    settings = config.optimizer
    now, then = learning_rate(settings, config.steps), learning_rate(settings, before)
    console.print(rest_of_schedule(settings.schedule, now, then, done=done, steps=config.steps, before=before))


def compile_programs(parts: Parts, config: TrainConfig, job: Job, console: Console) -> None:
    """Compile the programs of the training step and those that evaluate, as one list: they share the machine's cores.

    Shows a bar where the console is a terminal, and prints a line where compiling chose the order of the schedule, for
    each shape where batches have several, and for each stage that is offloaded.
    """
    before = parts.trainer.schedule
    with job.unlimited("compiling"):
        shapes = choose_batch_shapes(parts.data, parts.trainer, config)
        for shape in parts.data.shapes if len(shapes) > 1 else ():
            console.print("rows of " + ", ".join(f"{amount} {name}" for (_, name), amount in shape.amounts.items()))
        job.agree("shapes of batches", str(shapes))
        parts.trainer.compile(*shapes, progress=console.is_terminal, also=parts.evaluating)
    if parts.trainer.schedule is not before:
        console.print(f"schedule {before.name}: order chosen by costs estimated from the FLOPs of the programs")
    for line in parts.trainer.offload_lines:
        console.print(line)
    # Nobody starts a program that a slower process has yet to compile: its first messages would time out.
    # The schedule once more: by now it may have been chosen by what programs cost.
    job.agree("compiled step", parts.trainer.schedule.digest()[:16])


def _prepare_samples(config: TrainConfig, resolved: str, job: Job, console: Console) -> SampleLoader:
    """Make what loads samples, check with it the data, and compare versions and settings of all processes."""
    check_blank(config.eval.blank, config.data, config.model)
    loader = make_loader(config.data, config.model)
    for what, package in (("jax", jax), ("hetjax", hetjax)):
        job.agree(f"version of {what}", package.__version__)
    job.agree("config", hashlib.sha256(resolved.encode()).hexdigest()[:16])
    make_demo_data(config.demo_data, config.data, job, console)
    if job.is_main:
        check_data(loader, console, steps=config.steps, by=config.eval.by)
    elif config.data.eval is not None:
        loader.held_out_sets  # noqa: B018  opened ahead of the first step, where an error costs nothing
    return loader


def _rows_of_process(trainer: Trainer, config: TrainConfig, job: Job) -> tuple[int, ...] | None:
    """Return the rows of a batch that this process loads; None for all."""
    if job.processes == 1 or config.data.processor.balance:
        return None
    inputs = batch_shapes(config.data, config.model)
    fed = [stage for stage in trainer.stages if set(stage.inputs) & set(inputs.get(stage.module, ()))]
    needed = rows_needed(fed, config.data.batch_size, trainer.microbatches)
    # Metrics say how full a batch is, by the rows that process 0 has.
    return needed or ((0,) if job.is_main else ())


def _training_loader(trainer: Trainer, config: TrainConfig, loader: SampleLoader, console: Console) -> SampleLoader:
    """Return what loads samples for training: with media spread over the encoders' shards where that is asked for."""
    if not config.data.processor.balance:
        return loader
    rows = {
        stage.module: shard_rows(stage, config.data.batch_size, trainer.microbatches)
        for stage in trainer.stages
        if stage.module != trainer.graph.sink
    }
    shards = ", ".join(f"{module} over {groups.shape[1]} shards" for module, groups in rows.items())
    console.print(f"media are balanced: {shards}; every process loads all samples")
    return loader.balancing(rows)


def _fresh_state(
    trainer: Trainer, config: TrainConfig, warm_start: Mapping[str, WeightSource], console: Console
) -> TrainState:
    for module in trainer.graph.modules if warm_start else ():
        source = warm_start[module].name if module in warm_start else f"the seed {config.seed}"
        console.print(f"{module} starts from {source}")
    for module, source in warm_start.items():
        for difference in differences(source, module, config.model.components[module]):
            console.print(f"note: its weights were made for another setting: model.{module}.{difference}")
    return trainer.init(config.seed, warm_start=warm_start)
