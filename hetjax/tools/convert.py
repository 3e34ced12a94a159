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

from hetjax.checkpoint.saved_weights import SavedWeights, is_checkpoint
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
    """
    from hetjax.checkpoint.huggingface import (  # only here: they import the models
        export_to_huggingface,
        import_from_huggingface,
    )

    source, target = Path(from_), Path(to)
    wanted = None if dtype is None else np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    started = time.perf_counter()
    if (source / "config.json").exists() and not is_checkpoint(source):
        for option, given in (
            ("quantize", quantize),
            ("like", like),
            ("leave_out", leave_out),
            ("average", average or None),
        ):
            if given is not None:
                raise ConfigError(f"--{option} is for writing Hugging Face checkpoints, and {source} is one; drop it")
        with busy(f"converting {source}"):
            weights = HuggingFaceCheckpoint(source, family=family, dtype=wanted)
            report = import_from_huggingface(weights, target, allow_unexpected=allow_unexpected)
    elif source.exists():
        with busy(f"converting {source}"):
            report = export_to_huggingface(
                SavedWeights(source, average=average),
                target,
                like=None if like is None else Path(like),
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
