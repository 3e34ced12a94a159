"""The training state of a whole module, joined from its stages and split into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

import jax

from hetjax.graph import ModuleGraph
from hetjax.programs.update import Update
from hetjax.stages.flat_state import Arrays, by_path
from hetjax.stages.stage import Stage
from hetjax.state.module_arrays import find_parts, whole_shapes
from hetjax.state.train_state import StageState, TrainState
from hetjax.state.whole_array import LayerSlices, WholeArray

Kind: TypeAlias = Literal["params", "buffers", "opt_state"]
"""What an array of the state is for; "opt_state" only in a module that trains."""

StateArrays: TypeAlias = Mapping[Kind, Mapping[str, WholeArray]]
"""Every array of a module's training state by kind and path; paths of "opt_state" are those of the optimizer's tree."""

JoinedArrays: TypeAlias = Mapping[Kind, Mapping[str, jax.Array | LayerSlices]]
"""A module's whole arrays on the devices by kind and path; they have the shards that this process holds."""


def find_state(
    graph: ModuleGraph, module: str, stages: Sequence[Stage], updates: Mapping[str, Update]
) -> dict[Kind, dict[str, WholeArray]]:
    """Return every array of a module's training state by kind and path.

    `stages` and `updates`, by stage name, may be those of other modules, too. Raises GraphError as `find_parts`.
    """
    stages = [stage for stage in stages if stage.module == module]
    params, buffers = whole_shapes(graph, module)
    kinds: dict[Kind, dict[str, WholeArray]] = {
        "params": find_parts(module, params, {stage.name: stage.params for stage in stages}),
        "buffers": find_parts(module, buffers, {stage.name: stage.buffers for stage in stages}),
    }
    training = [stage for stage in stages if stage.trains]
    if training:
        trained = {path for stage in training for path in stage.trained}
        master = {
            path: jax.ShapeDtypeStruct(whole.shape, whole.dtype)
            for path, whole in kinds["params"].items()
            if path in trained
        }
        opt_state = updates[training[0].name].optimizer.state_shapes(master)
        parts = {stage.name: by_path(updates[stage.name].opt_state) for stage in training}
        kinds["opt_state"] = find_parts(module, by_path(opt_state), parts)
    return kinds


def join_state(kinds: StateArrays, state: TrainState) -> JoinedArrays:
    """Return a module's whole arrays on the devices, for what `find_state` found.

    `state` has the stages that this process runs; the arrays have the shards that these hold.
    """
    held: dict[str, dict[Kind, Arrays]] = {
        name: {"params": stage.params, "buffers": stage.buffers, "opt_state": by_path(stage.opt_state)}
        for name, stage in state.stages.items()
    }
    return {
        kind: {
            path: whole.join({stage: held[stage][kind][path] for stage in whole.parts if stage in held})
            for path, whole in found.items()
        }
        for kind, found in kinds.items()
    }


def split_state(
    kinds: StateArrays,
    joined: JoinedArrays,
    stages: Sequence[Stage],
    updates: Mapping[str, Update],
    others: Mapping[str, StageState] = MappingProxyType({}),
) -> dict[str, StageState]:
    """Return the states of a module's stages from its whole arrays; without "opt_state" in `joined` a fresh one.

    `stages` are those that this process runs, and `joined` has what they hold some of; weights that it lacks are those
    of `others`, by stage.
    """
    held: dict[str, dict[Kind, Arrays]] = {stage.name: {kind: {} for kind in joined} for stage in stages}
    for kind, arrays in joined.items():
        for path, array in arrays.items():
            for stage, part in kinds[kind][path].split(array).items():
                held[stage][kind][path] = part
    for stage in stages:
        if stage.name in others:
            held[stage.name]["params"] = {**others[stage.name].params, **held[stage.name]["params"]}
    return {stage.name: _stage_state(stage, updates.get(stage.name), **held[stage.name]) for stage in stages}


def _stage_state(
    stage: Stage, update: Update | None, *, params: Arrays, buffers: Arrays, opt_state: Arrays | None = None
) -> StageState:
    tree = None
    if update is not None and opt_state is None:
        tree = update.init(params)
    elif update is not None:
        structure = jax.tree.structure(update.opt_state)
        tree = structure.unflatten([opt_state[path] for path in by_path(update.opt_state)])
    return StageState(
        params={path: params[path] for path in stage.params},
        buffers={path: buffers[path] for path in stage.buffers},
        opt_state=tree,
    )
