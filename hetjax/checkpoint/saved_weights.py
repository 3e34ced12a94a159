"""Reads any part of the weights of a checkpoint, without a trainer."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hetjax.checkpoint.array_files import ArrayReader
from hetjax.checkpoint.description import DESCRIPTION_FILE, ArrayInfo, Description, ModuleDescription
from hetjax.checkpoint.folder import CheckpointFolder
from hetjax.checkpoint.integrity import damage_of
from hetjax.checkpoint.items import ArrayPlace, place_in_item
from hetjax.checkpoint.writer import reason
from hetjax.errors import CheckpointError, ConfigError
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo
from hetjax.state.module_state import Kind
from hetjax.state.weight_source import Box

HUGGING_FACE = "huggingface"
"""The folder inside a checkpoint with the files that a Hugging Face folder had beside its weights."""

AVERAGE_KEY = re.compile(r"(\d+/)*average/(?P<path>.+)")
"""The path in the optimizer's tree of the average of a weight: `AverageState`, in chains."""


class SavedWeights:
    """Gives the arrays of a checkpoint's modules by path; none is read before `read` asks for it.

    Args:
        directory: a run's folder, its folder of checkpoints, the folder of one step, or what `hetjax convert` made.
            Of several checkpoints it is the newest.
        average: give the running average of the weights that train (`optimizer.ema`) in their place.

    The files of all weights are compared with their checksums here; each process of a job takes its share of them.

    Raises CheckpointError where there is no checkpoint, a damaged one, or one of another format;
    ConfigError where it has no average.
    """

    def __init__(self, directory: str | os.PathLike[str], *, average: bool = False):
        self.folder = _find(Path(directory).absolute())
        # The average lies in the optimizer's state.
        items = (".weights/", ".opt_state/") if average else (".weights/",)
        damage = damage_of(self.folder, lambda file: file == DESCRIPTION_FILE or any(item in file for item in items))
        if damage is not None:
            raise CheckpointError(
                f"the checkpoint in {self.folder} is damaged: {damage}; give the folder of another step or run"
            )
        try:
            text = (self.folder / DESCRIPTION_FILE).read_text()
            description = Description.from_json(
                text, f"the checkpoint in {self.folder}", "use the version that wrote it"
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"cannot read the checkpoint in {self.folder}: {reason(error)}") from None
        self._modules = description.modules
        self.extra, self.step = description.extra, description.step
        self._averages = {module: _averages(module, kinds) for module, kinds in self._modules.items() if average}
        if average and not any(self._averages.values()):
            raise ConfigError(
                f"the checkpoint in {self.folder} has no average of the weights; train with optimizer.ema, e.g. 0.999 "
                "(that of a schedule-free optimizer, which eval.weights uses, is not stored)"
            )
        self._open_reader: _OpenReader | None = None

    @property
    def name(self) -> str:
        """Name in messages: the folder of the step."""
        return str(self.folder)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it holds."""
        return tuple(self._modules)

    @property
    def trained(self) -> tuple[str, ...]:
        """The modules that trained, of which it holds the optimizer's state."""
        return tuple(module for module, kinds in self._modules.items() if "opt_state" in kinds)

    def infos(self, module: str) -> dict[str, TensorInfo]:
        """Return shape and dtype of every weight and buffer of a module."""
        return {path: TensorInfo(info.shape, np.dtype(info.dtype)) for path, (_, info) in self._arrays(module).items()}

    def read(self, module: str, path: str, box: Box) -> np.ndarray:
        """Return a part of a module's array. Raises CheckpointError where it cannot be read."""
        try:
            return self._reader(module, path).read(box)
        except Exception as error:  # tensorstore raises whatever it meets
            raise CheckpointError(
                f"cannot read {path} of module '{module}' in {self.folder}: {reason(error)}; the checkpoint is damaged"
            ) from error

    def _reader(self, module: str, path: str) -> ArrayReader:
        """The reader of an array; only that of the last array is kept open."""
        if self._open_reader is None or (self._open_reader.module, self._open_reader.path) != (module, path):
            self._open_reader = None
            kind, _ = self._arrays(module)[path]
            averaged = self._averages.get(module, {}).get(path) if kind == "params" else None
            item, name = place_in_item(module, kind, path) if averaged is None else averaged
            self._open_reader = _OpenReader(module, path, ArrayReader(self.folder / item, name))
        return self._open_reader.reader

    def _arrays(self, module: str) -> dict[str, tuple[Kind, ArrayInfo]]:
        kinds = self._modules[module]
        return {path: (kind, info) for kind in ("params", "buffers") for path, info in kinds.get(kind, {}).items()}


def _averages(module: str, kinds: ModuleDescription) -> dict[str, ArrayPlace]:
    """Where the averages of a module's weights are, by path: in the state of `hetjax.optimizers.average`."""
    found = {}
    for key in kinds.get("opt_state", {}):
        match = AVERAGE_KEY.fullmatch(key)
        if match is not None and match["path"] in kinds["params"]:
            found[match["path"]] = place_in_item(module, "opt_state", key)
    return found


class _OpenReader(NamedTuple):
    module: str
    path: str
    reader: ArrayReader


def is_checkpoint(directory: Path) -> bool:
    """Return whether a folder is one that `SavedWeights` takes."""
    try:
        _find(directory)
    except CheckpointError:
        return False
    return True


def _find(directory: Path) -> Path:
    """The folder of a checkpoint's step."""
    if (directory / DESCRIPTION_FILE).exists():
        return directory
    for folder in (directory, directory / "checkpoints"):
        if steps := CheckpointFolder(folder).steps():
            return folder / str(steps[-1])
    raise CheckpointError(
        f"there is no checkpoint in {directory}; give a run's folder, its folder of checkpoints, or what "
        "`hetjax convert` made"
    )
