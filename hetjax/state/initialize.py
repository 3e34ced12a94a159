"""Makes the first state: weights from a seed, the same on every placement, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax

from hetjax.compilation.compiled_program import Program
from hetjax.errors import ConfigError
from hetjax.graph import ModuleGraph
from hetjax.programs.update import Update
from hetjax.stages.cut import cut_module
from hetjax.stages.flat_state import Arrays, Shapes, flatten_module
from hetjax.stages.host_transfer import to_devices
from hetjax.stages.placed_shapes import shardings_of
from hetjax.stages.stage import Stage
from hetjax.state.train_state import StageState, TrainState
from hetjax.state.weight_source import WeightSource, load_stages

Value = TypeVar("Value")


def initialize(
    graph: ModuleGraph,
    stages: Sequence[Stage],
    updates: Mapping[str, Update],
    seed: int,
    warm_start: Mapping[str, WeightSource] | None = None,
) -> TrainState:
    """Return weights, buffers and optimizer state of the stages that this process runs, each on its mesh.

    Modules of `warm_start` take their weights from there. Raises ConfigError for a seed beyond 32 bits, and for
    weights that do not fit.
    """
    if not -(2**31) <= seed < 2**31:
        raise ConfigError(f"seed is {seed}, which does not fit into 32 bits; give a number from 0 to {2**31 - 1}")
    made: dict[str, StageState] = {}
    given: dict[str, tuple[Arrays, Arrays]] = {}
    for module, source in (warm_start or {}).items():
        given |= load_stages(graph, module, [stage for stage in stages if stage.module == module], source)
    for stage in stages:
        if not stage.is_local:
            continue
        params, buffers = given.get(stage.name, ({}, {}))
        if params.keys() != stage.params.keys() or buffers.keys() != stage.buffers.keys():
            fresh_params, fresh_buffers = _stage_arrays(graph, stage, seed, {*params, *buffers})
            params, buffers = {**fresh_params, **params}, {**fresh_buffers, **buffers}
        opt_state = updates[stage.name].init(params) if stage.name in updates else None
        made[stage.name] = StageState(params=params, buffers=buffers, opt_state=opt_state)
    return TrainState(step=0, stages=made)


def _stage_arrays(graph: ModuleGraph, stage: Stage, seed: int, given: set[str]) -> tuple[Arrays, Arrays]:
    """The arrays of a stage, but for those that are given."""

    def make(seed: int | jax.Array) -> tuple[Arrays, Arrays]:
        part = cut_module(graph.build(stage.module, seed), stage.module, stage.index, stage.count, stage.layers)
        _, params, buffers = flatten_module(part)
        return _without(_cast(params, stage.params), given), _without(buffers, given)

    shardings = shardings_of(_without(stage.params, given)), shardings_of(_without(stage.buffers, given))
    if graph.is_concrete(stage.module):
        # By way of the host, since a step reuses the memory of the state: the module given keeps its own arrays.
        return jax.tree.map(to_devices, make(seed), shardings)
    # Inside the jit only this stage's shards are made: the rest of the module is dead code. A CPU takes
    # seconds to optimize random-number code that runs once, and fuses it differently on each layout.
    on_cpu = stage.mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    name = f"{stage.name} initialize"
    return Program(name, make, stage.mesh, seed, out_shardings=shardings, compiler_options=options)(seed)


def _without(arrays: dict[str, Value], given: set[str]) -> dict[str, Value]:
    return {path: array for path, array in arrays.items() if path not in given}


def _cast(arrays: Arrays, shapes: Shapes) -> Arrays:
    return {path: array.astype(shapes[path].dtype) for path, array in arrays.items()}
