"""The JSON item that describes a checkpoint, and whether it fits a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from hetjax.errors import CheckpointError
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo
from hetjax.models.json_values import Json
from hetjax.state.module_state import Kind, StateArrays

FORMAT = 1

DESCRIPTION_FILE = "description/metadata"
"""Where the description is inside a checkpoint."""


class ArrayInfo(NamedTuple):
    """Shape of a whole array, and the name of its dtype."""

    shape: tuple[int, ...]
    dtype: str


ModuleDescription: TypeAlias = Mapping[Kind, Mapping[str, ArrayInfo]]
"""The arrays of a module by kind and path."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """The description of a checkpoint.

    Attributes:
        step: steps done when it was saved.
        modules: the arrays of each module.
        extra: whatever the caller of `Checkpoints.save` gave.
    """

    step: int
    modules: Mapping[str, ModuleDescription]
    extra: Mapping[str, Json]

    def to_json(self) -> str:
        """Return the text of the item. Raises TypeError when `extra` is not JSON."""
        modules = {
            module: {
                kind: {path: {"shape": list(info.shape), "dtype": info.dtype} for path, info in arrays.items()}
                for kind, arrays in kinds.items()
            }
            for module, kinds in self.modules.items()
        }
        return json.dumps({"format": FORMAT, "step": self.step, "modules": modules, "extra": dict(self.extra)})

    @classmethod
    def from_json(cls, text: str, name: str, remedy: str) -> Description:
        """Return the description in the text of an item.

        Raises CheckpointError where it has another format, with the `name` of the checkpoint and what to do; ValueError
        and KeyError where it is damaged.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("the description is no JSON object")
        if content.get("format") != FORMAT:
            raise CheckpointError(
                f"{name} has format {content.get('format')}, but this version reads format {FORMAT}; {remedy}"
            )
        modules = {
            module: {
                kind: {path: ArrayInfo(tuple(info["shape"]), info["dtype"]) for path, info in arrays.items()}
                for kind, arrays in kinds.items()
            }
            for module, kinds in content["modules"].items()
        }
        return cls(step=content["step"], modules=modules, extra=content["extra"])


def describe_module(kinds: StateArrays | Mapping[Kind, Mapping[str, TensorInfo]]) -> dict[Kind, dict[str, ArrayInfo]]:
    """Return shape and dtype of a module's arrays by kind and path."""
    return {
        kind: {path: ArrayInfo(tuple(array.shape), array.dtype.name) for path, array in found.items()}
        for kind, found in kinds.items()
    }


def check_fits(name: str, saved: Mapping[str, ModuleDescription], now: Mapping[str, ModuleDescription]) -> None:
    """Raise CheckpointError when a checkpoint, called `name` in the message, is of another model or optimizer.

    `saved` has the modules of the checkpoint, `now` those of the model. A module may be frozen in one and train in the
    other.
    """
    remedy = "use the config that it was written with, or another run_dir"
    for module in sorted(saved.keys() ^ now.keys()):
        holder, other = ("the checkpoint", "the model") if module in saved else ("the model", "the checkpoint")
        raise CheckpointError(
            f"{name} is of another model: {holder} has module '{module}', which {other} lacks; {remedy}"
        )
    for module in now:
        switched = ("opt_state" in saved[module]) != ("opt_state" in now[module])
        for kind in now[module]:
            if kind not in saved[module]:
                continue
            difference = next(_differences(saved[module][kind], now[module][kind], dtypes=not switched), None)
            if difference is not None:
                of = "optimizer" if kind == "opt_state" else "model"
                raise CheckpointError(f"{name} is of another {of}: module '{module}': {kind} {difference}; {remedy}")


def _differences(saved: Mapping[str, ArrayInfo], now: Mapping[str, ArrayInfo], *, dtypes: bool) -> Iterator[str]:
    """Every array that differs, in words."""
    for path in [*now, *saved]:
        if path not in saved:
            yield f"{path} of shape {now[path].shape} is only in the model"
        elif path not in now:
            yield f"{path} of shape {saved[path].shape} is only in the checkpoint"
        elif saved[path].shape != now[path].shape:
            shapes = list(saved[path].shape), list(now[path].shape)
            yield f"{path} has shape {shapes[0]} in the checkpoint, but {shapes[1]} in the model"
        elif dtypes and saved[path].dtype != now[path].dtype:
            yield f"{path} has dtype {saved[path].dtype} in the checkpoint, but {now[path].dtype} in the model"
