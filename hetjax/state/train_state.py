"""What training carries from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from hetjax.stages.flat_state import Arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StageState:
    """One stage's arrays, on its mesh: weights and other state by path, and the optimizer's own tree."""

    params: Arrays
    buffers: Arrays
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All stages' arrays by stage name, and the number of steps done.

    A step consumes the state it is given: the memory of its weights is reused.
    """

    step: int
    stages: dict[str, StageState]
