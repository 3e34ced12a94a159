"""The data of a run, made where it is a demonstration, and checked before anything is compiled."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hetjax.cluster.job import Job
from hetjax.config.build import tokens_per_image
from hetjax.config.run_config import TrainConfig
from hetjax.data import Tokenizer, check_dataset, write_digits, write_shapes
from hetjax.data.chat import Processor
from hetjax.errors import DataError


def make_demo_data(config: TrainConfig, job: Job, console: Console) -> None:
    """Make demonstration data that is missing, in one process for all."""
    if config.demo_data is None:
        return
    if job.is_main and not Path(config.data.train).exists():
        write = {"digits": write_digits, "shapes": write_shapes}[config.demo_data]
        folder = write(Path(config.data.train).parent)
        console.print(f"wrote the {config.demo_data} to {folder}")
    job.agree("demonstration data")


def check_data(config: TrainConfig, tokenizer: Tokenizer, console: Console, processor: Processor | None = None) -> None:
    """Check the data that is there, as `processor` makes samples of it where there is one. Raises DataError."""
    data = config.data
    for path in filter(None, (data.train, data.eval)):
        summary = check_dataset(path, data, tokenizer, tokens_per_image(config), processor)
        if path == data.train and data.epochs and summary.samples * data.epochs < config.steps * data.batch_size:
            raise DataError(
                f"{path}: {summary.samples} samples in {data.epochs} epochs are not enough for {config.steps} steps of "
                f"{data.batch_size}; raise data.epochs, set it to null to repeat forever, or lower steps"
            )
        for bad in (*summary.missing, *summary.bad):
            console.print(f"bad sample: {bad}")
        what = "images" if processor is None else "files of images, videos and sound"
        console.print(f"{path}: {summary.samples} samples, {summary.images} {what}")
