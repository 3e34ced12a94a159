"""Cut a stack-of-layers model into pipeline stages, and check what each stage is called with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from flax import nnx

from models.errors import ModelError

Model = TypeVar("Model", bound=nnx.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCut:
    """Which stage of how many a model is; stage 0 of 1 is the whole model."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def last(self) -> bool:
        return self.index == self.count - 1


def cut_stage(model: Model, index: int, count: int, *, first: Sequence[str], last: Sequence[str]) -> Model:
    """The part of `model` for pipeline stage `index` of `count`; `model` itself is left as it is.

    The part has the paths of the whole model: a contiguous count-th of the rows of `model.layers`,
    the attributes named in `first` only in the first stage and those in `last` only in the last.
    Works on concrete weights, in a jit and under `nnx.eval_shape`.

    Raises ModelError where the layers do not divide into `count` stages.
    """
    name, layers = type(model).__name__, model.layers.count
    if model.cut != StageCut():
        raise ModelError(f"{name}: this is stage {model.cut.index} of {model.cut.count} already; cut the whole model")
    if count < 1 or layers % count:
        raise ModelError(
            f"{name}: layers % stages = {layers} % {count} must be 0 with stages >= 1; "
            f"choose a number of stages that divides {layers}"
        )
    if not 0 <= index < count:
        raise ModelError(f"{name}: stage index {index} is outside 0..{count - 1}; there are {count} stages")
    part = nnx.merge(*nnx.split(model))
    part.cut = StageCut(index=index, count=count)
    part.layers.keep(index * layers // count, (index + 1) * layers // count)
    for absent in (() if part.cut.first else first, () if part.cut.last else last):
        for attribute in absent:
            delattr(part, attribute)
    return part


def check_inputs(model: nnx.Module, required: Sequence[str], given: dict[str, Any]) -> None:
    """Raise ModelError unless each `required` input is given, and none that this stage does not take.

    `given` maps every input of the model to its value, None where it was left out.
    """
    missing = [port for port in required if given[port] is None]
    unknown = [port for port, value in given.items() if value is not None and port not in model.input_ports]
    if missing or unknown:
        told = "; ".join(
            f"{verb} {', '.join(ports)}" for verb, ports in (("lacks", missing), ("does not take", unknown)) if ports
        )
        raise ModelError(
            f"{type(model).__name__} stage {model.cut.index} of {model.cut.count}: the call {told}; "
            f"its inputs are {', '.join(model.input_ports)}"
        )
