"""The weights of a training state as programs take them that do not train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from hetjax.compilation.compiled_program import Program
from hetjax.stages.flat_state import Arrays
from hetjax.stages.placed_shapes import shardings_of
from hetjax.stages.stage import Stage
from hetjax.state.train_state import TrainState


class StageWeights(NamedTuple):
    """Weights of a stage in the compute dtype, and its buffers, by path."""

    params: Arrays
    buffers: Arrays


Weights: TypeAlias = dict[str, StageWeights]
"""By stage name; those of the stages that this process runs."""


class WeightCasts:
    """Casts the weights that programs take in another dtype or sharding than the state keeps them in.

    Args:
        stages: the stages, as the programs run them.
        purpose: what the programs are for, in the names of the casts.
    """

    def __init__(self, stages: Sequence[Stage], purpose: str):
        self._casts = {stage.name: _cast(stage, purpose) for stage in stages if stage.cast_params and stage.is_local}

    def tasks(self) -> dict[str, Callable[[], object]]:
        """Return what remains to compile, by name."""
        return {cast.name: cast.compile for cast in self._casts.values()}

    def __call__(self, state: TrainState) -> Weights:
        """Dispatch: the weights, cast once; valid until a training step consumes `state`."""
        return {
            name: StageWeights({**stage.params, **self._of(name, stage.params)}, stage.buffers)
            for name, stage in state.stages.items()
        }

    def _of(self, name: str, params: Arrays) -> Arrays:
        return self._casts[name](params) if name in self._casts else {}


def _cast(stage: Stage, purpose: str) -> Program:
    other = stage.cast_params

    def cast(params: Arrays) -> Arrays:
        return {path: params[path].astype(aval.dtype) for path, aval in other.items()}

    name = f"{stage.name} weights for {purpose}"
    return Program(name, cast, stage.mesh, stage.params, out_shardings=shardings_of(other))
