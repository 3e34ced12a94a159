"""The settings of a training run, read from YAML and the command line."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Literal

import jsonargparse
import yaml

from hetjax.config.command_line import PARSE_ERRORS, explain
from hetjax.config.eval_config import BestCheckpoint, EvalConfig
from hetjax.config.limits import check_least
from hetjax.config.model_config import ModelConfig
from hetjax.config.optimizer_config import OptimizerConfig
from hetjax.config.plain_yaml import plain_yaml
from hetjax.config.profile_config import ProfileConfig
from hetjax.config.target_options import HELP, TARGET_OPTIONS
from hetjax.data import DataConfig
from hetjax.data.source_config import plain_settings
from hetjax.errors import ConfigError
from hetjax.execution.kernel_choice import Kernels
from hetjax.meshes import Layout
from hetjax.models.components import COMPONENTS
from hetjax.schedule import DEFAULT_SCHEDULE, ScheduleName

# {class_path, init_args} inside of settings of any form, as a source's own schema, stay as they are written.
jsonargparse.set_parsing_settings(instantiate_subclass_spec_in_any=False, validate_subclass_spec_in_any=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one training run.

    Args:
        name: Name of the run; its files go to runs/<name>.
        model: What is trained.
        data: What it is trained on.
        placement: A layout for each module.
        optimizer: How weights change.
        steps: Training steps.
        eval: How held-out samples are evaluated.
        schedule: Order of the microbatches' programs.
        microbatches: Parts that each batch is split into, for all modules or by module, e.g. {llm: 8, vision: 2}; a
            module left out has as many as the one that it feeds.
        param_dtype: Dtype of the weights that are trained.
        compute_dtype: Dtype that weights are cast to, once a step, for the programs; null for no cast.
        remat: What a module's layers keep for the backward, e.g. {llm: full}: none, full, dots, or a list of points
            (attention, mamba, mlp); none computes nothing again.
        offload: Encoders that wait in the memory of the host while nothing needs them, e.g. [vision]: optimizer state
            until the update, weights between forwards and backwards, residuals of each microbatch.
        kernels: auto for the kernels that compute, on a small problem, what plain operations do on the devices;
            portable for plain operations alone.
        compilation_cache: Folder in which JAX keeps compiled programs from run to run; auto for that of
            JAX_COMPILATION_CACHE_DIR or ~/.cache/hetjax/compiled on GPUs and TPUs, and none on CPUs; null for none.
        seed: Seed of the initial weights.
        warm_start: Where the modules take their first weights from, by module, e.g. {llm: DIR}, or one folder for all
            that it holds: a Hugging Face folder, one that `hetjax convert` made, or that of another run; the
            optimizer starts fresh. Null for weights from the seed.
        bad_steps: Steps in a row whose loss or gradient is no finite number that are skipped, with the weights left as
            they were; one more ends the run.
        checkpoint_every: Steps between checkpoints; one more is written at the end.
        keep_checkpoints: Checkpoints kept, the newest ones.
        best_checkpoint: A number of the evaluations, e.g. {metric: eval/loss}, by which the best checkpoint is kept
            beside the newest; null for none.
        profile_every: Steps between those whose programs are timed one by one, or null for none.
        profile: Which steps JAX's profiler traces.
        loggers: Where metrics are logged beside metrics.jsonl: tensorboard, wandb, mlflow.
        logger_project: What wandb and mlflow group the run under.
        log_every: Steps between the lines printed where no terminal shows the live bar.
        report: Whether report.html is written into the run's folder at its end.
        run_dir: Folder of the run's files; null for runs/<name>.
        resume: What happens where the folder has a run already: same goes on unless settings of the experiment have
            changed, changed goes on with any, never refuses.
        overwrite: Whether a run that is there is deleted, to begin anew.
        demo_data: Demonstration data that is made when data.train does not exist.
        fake_devices: Run on this many CPU devices, over all processes, on any machine; null for those there are.
        step_timeout: Seconds without progress in a step, or in the wait for its batch, after which a run of one process
            prints what its threads are doing and ends; null for any time.
        peer_timeout: Seconds without progress after which a process counts as lost and its job ends.
        join_timeout: Seconds that the processes of a job have to find each other at its start.
        log_every_process: Whether every process of a job writes a log into the run's folder, not process 0 alone.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    placement: dict[str, Layout]
    optimizer: OptimizerConfig
    steps: int
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    schedule: ScheduleName = DEFAULT_SCHEDULE
    microbatches: int | dict[str, int] = 1
    param_dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "float64", "bfloat16"] | None = None
    remat: dict[str, str | list[str]] = dataclasses.field(default_factory=dict)
    offload: list[str] = dataclasses.field(default_factory=list)
    kernels: Kernels = "auto"
    compilation_cache: str | None = "auto"
    seed: int = 0
    warm_start: str | dict[str, str] | None = None
    bad_steps: int = 3
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    best_checkpoint: BestCheckpoint | None = None
    profile_every: int | None = 100
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    logger_project: str = "hetjax"
    log_every: int = 20
    report: bool = True
    run_dir: str | None = None
    resume: Literal["same", "changed", "never"] = "same"
    overwrite: bool = False
    demo_data: Literal["digits", "shapes", "digits_and_tones"] | None = None
    fake_devices: int | None = None
    step_timeout: float | None = 1800.0
    peer_timeout: float = 60.0
    join_timeout: float = 300.0
    log_every_process: bool = False

    def __post_init__(self):
        least = (
            "steps",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
            "profile_every",
            "fake_devices",
            "step_timeout",
        )
        check_least(self, 1, *least, "peer_timeout", "join_timeout")
        check_least(self, 0, "bad_steps")
        if self.profile.range and self.profile.range[-1] > self.steps:
            raise ConfigError(f"profile.steps is {self.profile.steps}, but the run has {self.steps} steps")
        averages = self.optimizer.ema is not None or self.optimizer.name.startswith("schedule_free")
        if self.eval.weights == "average" and not averages:
            raise ConfigError(
                "eval.weights is average, and the optimizer keeps none; set optimizer.ema, e.g. 0.999, or choose "
                "optimizer.name: schedule_free_adamw"
            )

    @property
    def directory(self) -> str:
        """Folder of the run's files."""
        return self.run_dir or os.path.join("runs", self.name)


def make_parser(**options) -> jsonargparse.ArgumentParser:
    """Build the parser of train.py: --config FILE, then --key value for any setting."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, **options)
    add_settings(parser)
    return parser


def add_settings(parser: jsonargparse.ArgumentParser) -> None:
    """Add the settings of a run to a parser that may have options of its own."""
    parser.add_argument("--config", action="config", help="YAML file with the settings of the run")
    parser.add_class_arguments(TrainConfig)


def take_settings(values: jsonargparse.Namespace, parser: jsonargparse.ArgumentParser) -> TrainConfig:
    """Return the settings among parsed values. Raises ConfigError, or one of `PARSE_ERRORS`."""
    try:
        made = parser.instantiate(values)
    except ValueError as error:
        # What the config of an optional part raised comes wrapped, with the first cause at the end of the chain.
        while error.__cause__ is not None:
            error = error.__cause__
        raise error from None
    made["model"].check_types()
    return TrainConfig(**{field.name: made[field.name] for field in dataclasses.fields(TrainConfig)})


class _Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Keeps the lines of what stands below the settings."""


def load_config(arguments: Sequence[str]) -> tuple[TrainConfig, str]:
    """Parse the command line of train.py; returns (the settings, the same resolved as YAML). Raises ConfigError."""
    if not arguments:
        raise ConfigError("no settings given; run e.g. python train.py --config configs/digits.yaml")
    parser = make_parser(
        prog="train.py",
        description="Train a multimodal model, every module on a mesh of its own.",
        epilog=HELP,
        formatter_class=_Formatter,
    )
    try:
        values = parser.parse_args(list(arguments))
        config = take_settings(values, parser)
    except PARSE_ERRORS as error:
        raise ConfigError(
            explain(
                str(error),
                [*known_settings(parser), *TARGET_OPTIONS],
                help_line="`python train.py --help` lists every setting",
            )
        ) from None
    values.pop("config")
    resolved = yaml.safe_load(parser.dump(values, skip_unset=False))
    # The parser takes texts in values of any type for YAML once more: "1" would become a number.
    resolved["data"] |= {"train": plain_settings(values.data.train), "eval": plain_settings(values.data.eval)}
    return config, plain_yaml(resolved)


def known_settings(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Return the names that a command line or a file may use."""
    fields = [field.name for kind in (Layout, *COMPONENTS) for field in dataclasses.fields(kind)]
    return list(dict.fromkeys((*parser.get_defaults().keys(), *fields)))
