"""hetjax convert: checkpoints of Hugging Face into ours and back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from rich.table import Table

from hetjax.checkpoint.saved_weights import is_checkpoint
from hetjax.errors import ConfigError
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.tensor_files.tensors import listed
from hetjax.tools.outcome import Json, Outcome, busy


def convert(
    *,
    from_: str,
    to: str,
    family: str | None = None,
    like: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    quantize: Literal["fp8", "nvfp4"] | None = None,
    allow_unexpected: bool = False,
    leave_out: list[str] | None = None,
    average: bool = False,
    adapter: bool = False,
) -> Outcome:
    """Convert a Hugging Face checkpoint into one of ours, or one of ours into a Hugging Face checkpoint.

    What --from holds decides which of the two. Tensors go one by one, so that the memory needed is that of the
    largest, not of the model.

    Args:
        from_: Hugging Face folder; or what this tool made of one, or a run's folder.
        to: Folder that is made.
        family: Family of the checkpoint, where config.json does not name it.
        like: Hugging Face folder of the same model, for config.json and tokenizer of a run's checkpoint.
        dtype: Dtype that floats are cast to; without it they stay as they are.
        quantize: Quantize the modules that the FP8 or NVFP4 release quantizes.
        allow_unexpected: Leave out tensors that no module takes, rather than refuse them.
        leave_out: Modules to leave behind that the family has no place for, one word each.
        average: Write the running average of a run's weights (optimizer.ema) in place of those that train.
        adapter: Write the low-rank maps that a run trained (model.lora) as an adapter of PEFT, rather than merge them.
    """
    from hetjax.checkpoint.huggingface import (  # only here: they import the models
        export_adapter,
        export_to_huggingface,
        import_from_huggingface,
    )
    from hetjax.checkpoint.warm_start import open_checkpoint

    source, target = Path(from_), Path(to)
    wanted = None if dtype is None else np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    started = time.perf_counter()
    if (source / "config.json").exists() and not is_checkpoint(source):
        for option, given in (
            ("quantize", quantize),
            ("like", like),
            ("leave_out", leave_out),
            ("average", average or None),
            ("adapter", adapter or None),
        ):
            if given is not None:
                raise ConfigError(f"--{option} is for writing Hugging Face checkpoints, and {source} is one; drop it")
        with busy(f"converting {source}"):
            weights = HuggingFaceCheckpoint(source, family=family, dtype=wanted)
            report = import_from_huggingface(weights, target, allow_unexpected=allow_unexpected)
    elif source.exists():
        weights, beside = open_checkpoint(source, average=average), None if like is None else Path(like)
        if adapter:
            _check_adapter(weights, dtype=dtype, quantize=quantize, leave_out=leave_out)
            report = export_adapter(weights, target, like=beside, family=family)
        else:
            with busy(f"converting {source}"):
                report = export_to_huggingface(
                    weights,
                    target,
                    like=beside,
                    family=family,
                    dtype=wanted,
                    quantize=quantize,
                    leave_out=leave_out or (),
                )
    else:
        raise ConfigError(f"there is no {source}; give --from a Hugging Face folder or a checkpoint of ours")
    seconds = round(time.perf_counter() - started, 3)
    numbers = {**dataclasses.asdict(report), "to": str(target), "seconds": seconds}
    return Outcome(numbers=numbers, shown=(_table(numbers),))


def _check_adapter(weights: object, **options: object) -> None:
    from hetjax.checkpoint.merged_weights import MergedWeights  # imports the models

    if not isinstance(weights, MergedWeights):
        raise ConfigError("--adapter is for a run that trained low-rank maps (model.lora), which this one did not")
    for option, given in options.items():
        if given is not None:
            raise ConfigError(f"--{option} is for whole weights; drop it, or --adapter")


def _table(numbers: Mapping[str, Json]) -> Table:
    table = Table(title=f"converted to {numbers['to']}", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in numbers.items():
        if key == "to" or value in ([], {}, None):
            continue
        if isinstance(value, list):
            value = listed([str(each) for each in value])
        table.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    return table
