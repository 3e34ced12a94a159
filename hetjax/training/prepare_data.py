"""Make the data of a run where it is a demonstration, and check it before anything is compiled."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hetjax.cluster.job import Job
from hetjax.data import DataConfig, SampleLoader, check_dataset, write_digits, write_digits_and_tones, write_shapes
from hetjax.data.pipeline import sample_order
from hetjax.data.sample_loader import group_of
from hetjax.data.source_config import train_sources
from hetjax.errors import DataError

_DEMO_DATA = {"digits": write_digits, "shapes": write_shapes, "digits_and_tones": write_digits_and_tones}


def make_demo_data(demo_data: str | None, data: DataConfig, job: Job, console: Console) -> None:
    """Make demonstration data that is missing, in one process for all.

    Args:
        demo_data: "digits", "shapes" or "digits_and_tones"; None for a run on other data.
        data: Whose file of training samples is made with the others of its folder if it does not exist.
        job: The job, which waits until the data is there.
        console: Where the folder is printed.
    """
    if demo_data is None:
        return
    train = train_sources(data.train)[0].path
    if job.is_main and not Path(train).exists():
        folder = _DEMO_DATA[demo_data](Path(train).parent)
        console.print(f"wrote the {demo_data.replace('_', ' ')} to {folder}")
    job.agree("demonstration data")


def check_data(loader: SampleLoader, console: Console, *, steps: int, by: str | None = None) -> None:
    """Check the files of training and evaluation, and print what they hold.

    Args:
        loader: What loads their samples.
        console: Where the counts and the bad samples are printed.
        steps: Training steps, which the samples must suffice for.
        by: Key that held-out samples must have, by which their answers are counted.

    Raises DataError where a file is missing or malformed, or has too few samples.
    """
    data, trained = loader.config, loader.trained
    checked = [(config.label, source, False) for config, source in zip(trained.configs, trained.sources, strict=True)]
    if data.eval is not None:
        for settings, source in loader.held_out_sets:
            if by is not None:
                group_of(source[0], by)  # a key that all lack should not show at the end of the training
            named = "held out" if settings.name is None else f"held out: {settings.name}"
            checked.append((f"{source.path} ({named})", source, True))
    for name, source, held_out in checked:
        summary = check_dataset(source, loader, held_out=held_out)
        for bad in (*summary.missing, *summary.bad):
            console.print(f"bad sample: {bad}")
        console.print(f"{name}: {summary.samples} samples, {summary.media} media files")
    if ending := loader.processor.ending:
        console.print(
            f"note: the chat template writes no end mark behind an answer; in training {ending} follows the last one, "
            "and the loss counts it behind every answer"
        )
    order = sample_order(data, trained)
    if data.epochs and order.total < steps * data.batch_size:
        raise DataError(
            f"{trained.joined.path}: {order.epoch} samples in {data.epochs} epochs are not enough for {steps} steps of "
            f"{data.batch_size}; raise data.epochs, set it to null to repeat forever, or lower steps"
        )
