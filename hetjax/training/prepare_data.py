"""Make the data of a run where it is a demonstration, and check it before anything is compiled."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hetjax.cluster.job import Job
from hetjax.data import (
    DataConfig,
    Tokenizer,
    check_dataset,
    open_eval,
    open_train,
    write_digits,
    write_digits_and_tones,
    write_shapes,
)
from hetjax.data.chat import OmniTokenizer, Processor
from hetjax.data.evaluation import group_of
from hetjax.data.pipeline import sample_order
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


def check_data(
    data: DataConfig,
    tokenizer: Tokenizer | OmniTokenizer,
    console: Console,
    *,
    steps: int,
    tokens_per_image: int,
    processor: Processor | None = None,
    by: str | None = None,
) -> None:
    """Check the files of training and evaluation, and print what they hold.

    Args:
        data: Which files, and how they are read.
        tokenizer: What encodes their text.
        console: Where the counts and the bad samples are printed.
        steps: Training steps, which the samples must suffice for.
        tokens_per_image: Positions of the sequence that an image of fixed size takes.
        processor: What makes the samples; None for images of one fixed size.
        by: Key that held-out samples must have, by which their answers are counted.

    Raises DataError where a file is missing or malformed, or has too few samples.
    """
    trained = open_train(data)
    checked = [(config.label, source) for config, source in zip(trained.configs, trained.sources, strict=True)]
    if data.eval is not None:
        held_out = open_eval(data)
        if by is not None:
            group_of(held_out[0], by)  # of one sample: a key that all lack should not show at the end of the training
        checked.append((f"{held_out.path} (held out)", held_out))
    what = "images" if processor is None else "image, video and audio files"
    for name, source in checked:
        summary = check_dataset(source, data, tokenizer, tokens_per_image, processor)
        for bad in (*summary.missing, *summary.bad):
            console.print(f"bad sample: {bad}")
        console.print(f"{name}: {summary.samples} samples, {summary.images} {what}")
    order = sample_order(data, trained)
    if data.epochs and order.total < steps * data.batch_size:
        raise DataError(
            f"{trained.joined.path}: {order.epoch} samples in {data.epochs} epochs are not enough for {steps} steps of "
            f"{data.batch_size}; raise data.epochs, set it to null to repeat forever, or lower steps"
        )
