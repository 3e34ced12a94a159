"""Prepare a training run: its data, trainer, generator and first state, agreed on by all processes, and compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

import hetjax
from hetjax.checkpoint import Checkpoints
from hetjax.checkpoint.warm_start import differences, open_warm_start
from hetjax.cluster.job import Job
from hetjax.compilation.gpu_options import gpu_options
from hetjax.config.build import (
    batch_shapes,
    build_trainer,
    prompt_shapes,
    tokens_per_image,
    use_devices,
)
from hetjax.config.build_optimizer import learning_rate
from hetjax.config.build_processor import make_processor, tokenizer_of
from hetjax.config.run_config import EvalConfig, TrainConfig
from hetjax.data import PackedData, Tokenizer, TrainData, open_eval, train_data
from hetjax.data.chat import OmniTokenizer, Processor
from hetjax.data.reading import Source
from hetjax.generation.generator import Generator
from hetjax.optimizers.schedules import rest_of_schedule
from hetjax.stages.batch import check_batch, rows_needed
from hetjax.state.train_state import TrainState
from hetjax.trainer import Trainer
from hetjax.training.display import placement_table
from hetjax.training.prepare_data import check_data, make_demo_data

# T steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """Tokenizer and processor of a run.

    Attributes:
        tokenizer: Encodes and decodes text.
        processor: Makes samples with media of any size; None where images have one fixed size.
    """

    tokenizer: Tokenizer | OmniTokenizer
    processor: Processor | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a training run.

    Attributes:
        language: Tokenizer and processor.
        trainer: Runs the steps.
        generator: Answers the held-out questions, on the meshes of training.
        answering: What remains to compile of the programs that answer, by name; empty without held-out data.
        data: The batches of this process.
        held_out: The samples to evaluate on; None for none.
        checkpoints: Those of the run's folder.
        learning_rates: The learning rate of every step, for the metrics.
    """

    language: Language
    trainer: Trainer
    generator: Generator
    answering: Mapping[str, Callable[[], object]]
    data: TrainData | PackedData
    held_out: Source | None
    checkpoints: Checkpoints
    learning_rates: Float[np.ndarray, " T"]


@dataclasses.dataclass(kw_only=True)
class Progress:
    """The state of a run between its steps, and what it counts.

    Attributes:
        state: The training state, which each step replaces.
        bad_samples: Samples that were skipped so far.
        steps_here: Steps since this process started.
    """

    state: TrainState
    bad_samples: int = 0
    steps_here: int = 0


@contextlib.contextmanager
def open_parts(config: TrainConfig, resolved: str, job: Job, console: Console) -> Iterator[Parts]:
    """Make the parts of a run, and stop the data threads and close the files behind the block.

    Nothing is compiled yet. `resolved` is the settings as YAML, which all processes must share.
    Raises HetjaxError or PlacementError for settings, data or devices that do not fit.
    """
    use_devices(config.fake_devices, (config.param_dtype, config.compute_dtype), processes=job.processes)
    language = _prepare_language(config, resolved, job, console)
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
    directory = Path(config.directory)
    directory.mkdir(parents=True, exist_ok=True)
    generator = _build_generator(trainer, config.eval, language.tokenizer)
    prompts = prompt_shapes(config.data, config.model, config.eval.batch_size) if config.data.eval else None
    parts = Parts(
        language=language,
        trainer=trainer,
        generator=generator,
        answering={} if prompts is None else generator.trace(prompts),
        data=train_data(
            config.data,
            language.tokenizer,
            tokens_per_image(config.model),
            _rows_of_process(trainer, config, job),
            language.processor,
        ),
        held_out=None if config.data.eval is None else open_eval(config.data),
        checkpoints=Checkpoints(directory / "checkpoints", keep=config.keep_checkpoints, trainer=trainer),
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


def first_progress(parts: Parts, config: TrainConfig, job: Job, console: Console) -> Progress:
    """Restore the newest checkpoint of the run's folder, or make a fresh state where it has none.

    Raises CheckpointError or ConfigError for a checkpoint or weights that do not fit the model.
    """
    step = parts.checkpoints.latest_step()
    job.agree("checkpoint to start from", str(step))
    with job.unlimited("making the first state"):
        if step is None:
            return Progress(state=_fresh_state(parts.trainer, config, console))
        state, extra = parts.checkpoints.restore()
        parts.data.set_state(extra["data"])
        console.print(f"resuming after step {state.step} from {parts.checkpoints.directory}")
        _print_changed_schedule(config, state.step, extra.get("steps"), console)
        return Progress(state=state, bad_samples=extra["bad_samples"])


def _print_changed_schedule(config: TrainConfig, done: int, before: int | None, console: Console) -> None:
    """Print what the learning rate will be where a run goes on with another number of steps than it had."""
    if before is None or before == config.steps or done >= config.steps:
        return
    settings = config.optimizer
    now, then = learning_rate(settings, config.steps), learning_rate(settings, before)
    console.print(rest_of_schedule(settings.schedule, now, then, done=done, steps=config.steps, before=before))


def compile_programs(parts: Parts, config: TrainConfig, job: Job, console: Console) -> None:
    """Compile the programs of the training step and those that answer, as one list: they share the machine's cores.

    Shows a bar where the console is a terminal, and prints a line where compiling chose the order of the schedule, and
    for each stage that is offloaded.
    """
    before = parts.trainer.schedule
    with job.unlimited("compiling"):
        shapes = batch_shapes(config.data, config.model)
        parts.trainer.compile(shapes, progress=console.is_terminal, also=parts.answering)
    if parts.trainer.schedule is not before:
        console.print(f"schedule {before.name}: order chosen by costs estimated from the FLOPs of the programs")
    for line in parts.trainer.offload_lines:
        console.print(line)
    # Nobody starts a program that a slower process has yet to compile: its first messages would time out.
    # The schedule once more: by now it may have been chosen by what programs cost.
    job.agree("compiled step", parts.trainer.schedule.digest()[:16])


def _prepare_language(config: TrainConfig, resolved: str, job: Job, console: Console) -> Language:
    """Make tokenizer and processor, check with them the data, and compare versions and settings of all processes."""
    processor = make_processor(config.data, config.model)
    tokenizer = tokenizer_of(config.data, config.model, processor)
    for what, package in (("jax", jax), ("hetjax", hetjax)):
        job.agree(f"version of {what}", package.__version__)
    job.agree("config", hashlib.sha256(resolved.encode()).hexdigest()[:16])
    make_demo_data(config.demo_data, config.data, job, console)
    if job.is_main:
        check_data(
            config.data,
            tokenizer,
            console,
            steps=config.steps,
            tokens_per_image=tokens_per_image(config.model),
            processor=processor,
        )
    return Language(tokenizer=tokenizer, processor=processor)


def _build_generator(trainer: Trainer, settings: EvalConfig, tokenizer: Tokenizer | OmniTokenizer) -> Generator:
    return Generator(
        trainer,
        max_new_tokens=settings.max_new_tokens,
        stop_token=tokenizer.stop_ids,
        sampling=settings.sampling,
    )


def _rows_of_process(trainer: Trainer, config: TrainConfig, job: Job) -> tuple[int, ...] | None:
    """Return the rows of a batch that this process loads; None for all."""
    if job.processes == 1:
        return None
    inputs = batch_shapes(config.data, config.model)
    fed = [stage for stage in trainer.stages if set(stage.inputs) & set(inputs.get(stage.module, ()))]
    return rows_needed(fed, config.data.batch_size, trainer.microbatches)


def _fresh_state(trainer: Trainer, config: TrainConfig, console: Console) -> TrainState:
    warm_start = open_warm_start(config.warm_start, tuple(trainer.graph.modules))
    for module in trainer.graph.modules if warm_start else ():
        source = warm_start[module].name if module in warm_start else f"the seed {config.seed}"
        console.print(f"{module} starts from {source}")
    for module, source in warm_start.items():
        for difference in differences(source, module, config.model.components[module]):
            console.print(f"note: its weights were made for another setting: model.{module}.{difference}")
    return trainer.init(config.seed, warm_start=warm_start)
