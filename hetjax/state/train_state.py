"""The training state: weights, buffers and optimizer state of every stage, and the number of steps done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import optax

from hetjax.errors import StateError
from hetjax.graph import ModuleGraph
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import Stage


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StageState:
    """One stage's arrays, on its mesh: weights and other state by path, and the optimizer's own tree.

    `opt_state` is None for a stage that does not train.
    """

    params: Arrays
    buffers: Arrays
    opt_state: optax.OptState | None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StagedModules:
    """The modules that a state is of, and the stages that hold their arrays.

    Attributes:
        graph: the modules.
        stages: the stages of all of them, in order, those of other processes too.
        devices: devices of all processes.
    """

    graph: ModuleGraph
    stages: Sequence[Stage]
    devices: Sequence[jax.Device]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All stages' arrays by stage name, and the number of steps done.

    A step consumes the state it is given: the memory of its weights is reused. `modules` says which modules it is of;
    it is None in a state that no trainer made.
    """

    step: int
    stages: dict[str, StageState]
    modules: StagedModules | None = dataclasses.field(default=None, repr=False, metadata={"static": True})


def check_state(state: TrainState, stages: Sequence[Stage]) -> None:
    """Raise StateError for a state of other stages than those of this process, and for one that a step consumed."""
    names = [stage.name for stage in stages if stage.is_local]
    if sorted(state.stages) != sorted(names):
        raise StateError(
            f"the state is of stages {', '.join(state.stages)}, but this trainer has {', '.join(names)}; make one "
            "with init, or restore a checkpoint, which fits any placement"
        )
    for name, stage in state.stages.items():
        # A step that failed may have taken either: host copies take the optimizer's state first.
        arrays = [*stage.params.values(), *jax.tree.leaves(stage.opt_state)]
        if any(isinstance(array, jax.Array) and array.is_deleted() for array in arrays):
            raise StateError(
                f"stage '{name}': the state after {state.step} steps was consumed by a step; "
                "go on with the state which that step returned"
            )
