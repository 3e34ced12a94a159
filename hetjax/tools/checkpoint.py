"""hetjax checkpoint: what checkpoints hold, and whether they are what was written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from hetjax.checkpoint.description import DESCRIPTION_FILE, Description
from hetjax.checkpoint.folder import CheckpointFolder
from hetjax.checkpoint.integrity import Integrity
from hetjax.checkpoint.writer import reason
from hetjax.errors import CheckpointError
from hetjax.tools.outcome import Outcome, busy
from hetjax.tools.tables import NumberTable


def verify(folder: str, *, step: int | None = None) -> Outcome:
    """Compare every file of checkpoints with its checksum; ends with an error where one differs.

    Args:
        folder: A run's folder, or its folder of checkpoints.
        step: The checkpoint to read; without it, all.
    """
    rows, damaged = [], []
    for path in _checkpoints(folder, step):
        with busy(f"reading {path}"):
            check = Integrity(path)
            damage = check.start() or check.finish()
        if damage is not None:
            damaged.append(f"step {path.name}: {damage}")
        verdict = "whole" if check.is_known else "has no checksums"
        rows.append({"step": int(path.name), "files": check.files, "bytes": check.bytes, "verdict": verdict})
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(rows)} checkpoints in {folder} damaged: {'; '.join(damaged)}; a run that goes on "
            "takes the newest that is whole"
        )
    table = NumberTable(
        title=f"checkpoints in {folder}",
        texts=("verdict",),
        numbers=("step", "files", "bytes"),
        rows=[(row["verdict"], str(row["step"]), str(row["files"]), f"{row['bytes']:,}") for row in rows],
    )
    return Outcome(numbers={"checkpoints": rows}, shown=(table,))


def inspect(folder: str, *, step: int | None = None, arrays: bool = False) -> Outcome:
    """Show what a checkpoint holds: its modules, their arrays and sizes.

    Args:
        folder: A run's folder, its folder of checkpoints, or what `hetjax convert` made.
        step: The checkpoint; without it, the newest.
        arrays: Whether each array has a row, instead of each kind of a module.
    """
    path = _checkpoints(folder, step)[-1]
    try:
        text = (path / DESCRIPTION_FILE).read_text()
        description = Description.from_json(text, f"the checkpoint in {path}", "use the version that wrote it")
    except CheckpointError:
        raise
    except Exception as error:  # a damaged description may lack anything
        raise CheckpointError(f"cannot read {path / DESCRIPTION_FILE}: {reason(error)}; it is damaged") from None
    found = [
        {"module": module, "kind": kind, "path": name, "shape": list(info.shape), "dtype": info.dtype,
         "bytes": math.prod(info.shape) * _itemsize(info.dtype)}
        for module, kinds in description.modules.items()
        for kind, infos in kinds.items()
        for name, info in infos.items()
    ]  # fmt: skip
    if arrays:
        rows = [
            (each["module"], each["kind"], each["path"], each["dtype"], str(each["shape"]), f"{each['bytes']:,}")
            for each in found
        ]
        texts, numbers = ("module", "kind", "array", "dtype"), ("shape", "bytes")
    else:
        rows = [
            (module, kind, str(len(infos)), f"{sum(math.prod(info.shape) for info in infos.values()):,}",
             f"{sum(math.prod(info.shape) * _itemsize(info.dtype) for info in infos.values()):,}")
            for module, kinds in description.modules.items()
            for kind, infos in kinds.items()
        ]  # fmt: skip
        texts, numbers = ("module", "kind"), ("arrays", "numbers", "bytes")
    table = NumberTable(title=f"step {description.step}: {path}", texts=texts, numbers=numbers, rows=rows)
    return Outcome(numbers={"step": description.step, "folder": str(path), "arrays": found}, shown=(table,))


def _checkpoints(directory: str, step: int | None) -> list[Path]:
    """Return the folders of checkpoints, oldest first. Raises CheckpointError where there is none."""
    for folder in (Path(directory) / "checkpoints", Path(directory)):
        checkpoints = CheckpointFolder(folder.absolute())
        steps = checkpoints.steps()
        if step is not None and steps and step not in steps:
            listed = ", ".join(map(str, steps))
            raise CheckpointError(f"{folder} has no checkpoint of step {step}; it has {listed}")
        if steps:
            return [checkpoints.path(each) for each in (steps if step is None else [step])]
    raise CheckpointError(f"there is no checkpoint in {directory}; give a run's folder or its folder of checkpoints")


def _itemsize(dtype: str) -> int:
    """Return the bytes of a number of a dtype, those of JAX among them."""
    return np.dtype(dtype).itemsize
