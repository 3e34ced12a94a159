"""The weights of a checkpoint, of which any part can be read without a trainer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hetjax.checkpoint.array_files import ArrayReader
from hetjax.checkpoint.description import FORMAT
from hetjax.checkpoint.folder import CheckpointFolder
from hetjax.checkpoint.items import place_in_item
from hetjax.checkpoint.writer import reason
from hetjax.errors import CheckpointError
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo
from hetjax.state.weight_source import Box

HUGGING_FACE = "huggingface"
"""The folder inside a checkpoint with what a Hugging Face folder had beside its weights."""


class SavedWeights:
    """The arrays of a checkpoint's modules, by path; nothing is read before it is asked for.

    Args:
        directory: a run's folder, its folder of checkpoints, the folder of one step, or what `hetjax convert` made.
            Of several checkpoints it is the newest.

    Raises CheckpointError where there is no checkpoint, or one of another format.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.folder = _find(Path(directory).absolute())
        try:
            description = json.loads((self.folder / "description" / "metadata").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read the checkpoint in {self.folder}: {reason(error)}") from None
        if description.get("format") != FORMAT:
            raise CheckpointError(
                f"the checkpoint in {self.folder} has format {description.get('format')}, but this version reads "
                f"format {FORMAT}; use the version that wrote it"
            )
        self._modules: dict[str, dict[str, Any]] = description["modules"]
        self.extra: dict[str, Any] = description["extra"]
        self.step: int = description["step"]
        self._reader: tuple[tuple[str, str], ArrayReader] | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.folder)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it holds."""
        return tuple(self._modules)

    def infos(self, module: str) -> dict[str, TensorInfo]:
        """Shape and dtype of every weight and buffer of a module."""
        return {
            path: TensorInfo(tuple(each["shape"]), np.dtype(each["dtype"]))
            for path, (_, each) in self._arrays(module).items()
        }

    def read(self, module: str, path: str, box: Box) -> np.ndarray:
        """A part of a module's array. Raises CheckpointError where it cannot be read."""
        try:
            return self._open(module, path).read(box)
        except Exception as error:  # tensorstore raises whatever it meets
            raise CheckpointError(
                f"cannot read {path} of module '{module}' in {self.folder}: {reason(error)}; the checkpoint is damaged"
            ) from error

    def _open(self, module: str, path: str) -> ArrayReader:
        if self._reader is None or self._reader[0] != (module, path):
            self._reader = None
            kind, _ = self._arrays(module)[path]
            item, keys = place_in_item(module, kind, path)
            self._reader = (module, path), ArrayReader(self.folder / item, keys)
        return self._reader[1]

    def _arrays(self, module: str) -> Mapping[str, tuple[str, dict[str, Any]]]:
        kinds = self._modules[module]
        return {path: (kind, each) for kind in ("params", "buffers") for path, each in kinds.get(kind, {}).items()}


def is_checkpoint(directory: Path) -> bool:
    """Whether a folder is one that `SavedWeights` takes."""
    try:
        _find(directory)
    except CheckpointError:
        return False
    return True


def _find(directory: Path) -> Path:
    """The folder of a checkpoint's step."""
    if (directory / "description" / "metadata").exists():
        return directory
    for folder in (directory, directory / "checkpoints"):
        if steps := CheckpointFolder(folder).steps():
            return folder / str(steps[-1])
    raise CheckpointError(
        f"there is no checkpoint in {directory}; give a run's folder, its folder of checkpoints, or what "
        "`hetjax convert` made"
    )
