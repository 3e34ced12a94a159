"""Cut a model with a stack of layers into pipeline stages, and check what each stage is called with."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TypeVar

from flax import nnx
from jaxtyping import Array

from hetjax.models.errors import ModelError

Model = TypeVar("Model", bound=nnx.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCut:
    """Which stage of how many a model is, and its first layer; stage 0 of 1 is the whole model."""

    index: int = 0
    count: int = 1
    start: int = 0

    @property
    def first(self) -> bool:
        """Whether it is the first stage."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether it is the last stage."""
        return self.index == self.count - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCosts:
    """What the parts of a model cost, in any one unit; multiplications a token will do.

    Attributes:
        first: what the first stage has beside its layers.
        layers: each layer.
        last: what the last stage has beside its layers.
    """

    first: float
    layers: tuple[float, ...]
    last: float


def even_layers(layers: int, count: int) -> tuple[int, ...]:
    """Return the layers of each of `count` stages, as even as they come; stages in the middle get more.

    Those have nothing beside their layers. Raises ModelError for more stages than layers.
    """
    _check_count(layers, count)
    least, more = divmod(layers, count)
    start = (count - more) // 2
    return tuple(least + (start <= index < start + more) for index in range(count))


def balanced_layers(costs: LayerCosts, count: int) -> tuple[int, ...]:
    """Return the layers of each of `count` stages, such that the costliest stage costs the least.

    Every stage has a layer. Behind each border the rest is shared out as well as it can be. Raises ModelError for more
    stages than layers.
    """
    layers = len(costs.layers)
    _check_count(layers, count)
    sums = (0.0, *itertools.accumulate(costs.layers))

    def cost(stage: int, start: int, stop: int) -> float:
        ends = (costs.first if stage == 0 else 0.0) + (costs.last if stage == count - 1 else 0.0)
        return sums[stop] - sums[start] + ends

    # best[start]: (cost of the costliest of the stages from `stage` on, where its layers begin at `start`; its end).
    best = {start: (cost(count - 1, start, layers), layers) for start in range(count - 1, layers)}
    ends = [best]
    for stage in reversed(range(count - 1)):
        best = {
            start: min(
                (max(cost(stage, start, stop), ends[-1][stop][0]), stop)
                for stop in range(start + 1, layers - (count - 1 - stage) + 1)
            )
            for start in ([0] if stage == 0 else range(stage, layers - (count - 1 - stage)))
        }
        ends.append(best)
    borders = [0]
    for best in reversed(ends):
        borders.append(best[borders[-1]][1])
    return tuple(stop - start for start, stop in itertools.pairwise(borders))


def _check_count(layers: int, count: int) -> None:
    if not 1 <= count <= layers:
        raise ModelError(
            f"1 <= stages <= layers must hold, but {count} stages are to share {layers} layers; "
            f"choose from 1 to {layers} stages, all chunks of a device counted"
        )


def cut_stage(
    model: Model,
    index: int,
    count: int,
    layers: Sequence[int] | None = None,
    *,
    first: Sequence[str],
    last: Sequence[str],
) -> Model:
    """Return the part of `model` for pipeline stage `index` of `count`; `model` itself is left as it is.

    The part has the paths of the whole model: a slice of `model.layers`, as many as
    `layers[index]` says (without it, as `even_layers` has it), the attributes named in `first` only in
    the first stage and those in `last` only in the last. Works on concrete weights, in a jit and under
    `nnx.eval_shape`.

    Raises ModelError where the layers do not add up, and for more stages than layers.
    """
    name, total = type(model).__name__, model.layers.count
    if model.cut != StageCut():
        raise ModelError(f"{name}: this is stage {model.cut.index} of {model.cut.count} already; cut the whole model")
    try:
        counts = even_layers(total, count) if layers is None else tuple(layers)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    if len(counts) != count or sum(counts) != total or min(counts) < 1:
        raise ModelError(
            f"{name}: {count} stages with {'+'.join(map(str, counts))} = {sum(counts)} layers do not make up its "
            f"{total}; give {count} numbers of 1 or more that add up to {total}"
        )
    if not 0 <= index < count:
        raise ModelError(f"{name}: stage index {index} is outside 0..{count - 1}; there are {count} stages")
    part = nnx.merge(*nnx.split(model))
    part.cut = StageCut(index=index, count=count, start=sum(counts[:index]))
    part.layers.keep(part.cut.start, sum(counts[: index + 1]))
    for absent in (() if part.cut.first else first, () if part.cut.last else last):
        for attribute in absent:
            delattr(part, attribute)
    return part


def check_inputs(model: nnx.Module, required: Sequence[str], given: Mapping[str, Array | None]) -> None:
    """Raise ModelError unless each `required` input is given, and none that this stage does not take.

    `given` maps every input of the model to its value, None where it was left out.
    """
    missing = [port for port in required if given[port] is None]
    unknown = [port for port, value in given.items() if value is not None and port not in model.input_ports]
    if missing or unknown:
        wrong = "; ".join(
            f"{verb} {', '.join(ports)}" for verb, ports in (("lacks", missing), ("does not take", unknown)) if ports
        )
        raise ModelError(
            f"{type(model).__name__} stage {model.cut.index} of {model.cut.count}: the call {wrong}; "
            f"its inputs are {', '.join(model.input_ports)}"
        )
