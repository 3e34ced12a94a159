"""Takes a whole module out of a training state, and puts one in, whatever its stages and their meshes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.errors import StateError
from hetjax.stages.flat_state import Arrays, flatten_module
from hetjax.stages.host_transfer import to_devices, to_every_process
from hetjax.stages.stage import Stage
from hetjax.state.module_arrays import find_parts, whole_shapes
from hetjax.state.train_state import StagedModules, TrainState


def module_of(state: TrainState, name: str) -> nnx.Module:
    """Return a module of a state as a plain NNX module, on the default device, with the weights that the state has now.

    It is whole, whatever stages and meshes it trains on, and its own: steps do not change it, nor does it change them.
    Weights have the dtype that they train in. With many processes all of them call it, and each gets the module.

    Raises StateError for a state that no trainer made, and for a module that it has not.
    """
    modules, stages = _stages_of(state, name)
    skeleton, *_ = flatten_module(modules.graph.abstract(name))
    kinds, copies = whole_shapes(modules.graph, name), _copies(modules, stages, state)
    return skeleton.assemble(*(_joined(name, *each) for each in zip(kinds, copies, strict=True)))


def with_module(state: TrainState, name: str, module: nnx.Module) -> TrainState:
    """Return a state with this module in the place of its own of that name: the reverse of `module_of`.

    Every array goes to the devices and into the dtype that its stage has for it. The optimizer's state stays as it is,
    and the arrays of other modules are those of the state given: go on with one of the two states alone.

    Raises StateError for a module whose arrays have other paths or shapes, and as `module_of` does.
    """
    modules, stages = _stages_of(state, name)
    _, *given = flatten_module(module)
    kinds = whole_shapes(modules.graph, name)
    for kind, shapes, arrays in zip(("weights", "buffers"), kinds, given, strict=True):
        _check_fits(name, kind, {path: tuple(aval.shape) for path, aval in shapes.items()}, arrays)
    parts = {stage.name: stage.params for stage in stages}, {stage.name: stage.buffers for stage in stages}
    local = [stage.name for stage in stages if stage.is_local]
    params, buffers = (_placed(name, *each, local) for each in zip(kinds, parts, given, strict=True))
    made = {
        stage: dataclasses.replace(state.stages[stage], params=params[stage], buffers=buffers[stage]) for stage in local
    }
    return dataclasses.replace(state, stages={**state.stages, **made})


def _stages_of(state: TrainState, name: str) -> tuple[StagedModules, list[Stage]]:
    modules = state.modules
    if modules is None:
        raise StateError("the state does not know its modules; take one that Trainer.init, step or a checkpoint gave")
    if name not in modules.graph.modules:
        raise StateError(f"the state has no module '{name}'; its modules are {', '.join(modules.graph.modules)}")
    return modules, [stage for stage in modules.stages if stage.module == name]


def _copies(
    modules: StagedModules, stages: Sequence[Stage], state: TrainState
) -> tuple[Mapping[str, Arrays], Mapping[str, Arrays]]:
    """Weights and buffers of these stages, in every process."""
    held = {stage.name: state.stages[stage.name] for stage in stages if stage.is_local}
    params = {name: each.params for name, each in held.items()}
    buffers = {name: each.buffers for name, each in held.items()}
    return (
        to_every_process(stages, params, modules.devices),
        to_every_process(stages, buffers, modules.devices, kind="buffers"),
    )


def _joined(name: str, shapes: Mapping[str, jax.ShapeDtypeStruct], held: Mapping[str, Arrays]) -> Arrays:
    return {
        path: jnp.array(whole.join_on_host({stage: held[stage][path] for stage in whole.parts}))
        for path, whole in find_parts(name, shapes, held).items()
    }


def _check_fits(name: str, kind: str, shapes: Mapping[str, tuple[int, ...]], given: Arrays) -> None:
    wrong = [
        f"{path} is {given[path].shape if path in given else 'missing'} in the module, "
        f"{shapes.get(path, 'unknown')} in the state"
        for path in sorted(shapes.keys() | given.keys())
        if path not in given or tuple(given[path].shape) != shapes.get(path)
    ]
    if wrong:
        raise StateError(f"module '{name}' has other {kind} than the state: {wrong[0]}; build it from the same config")


def _placed(
    name: str,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    parts: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]],
    arrays: Arrays,
    local: Sequence[str],
) -> dict[str, Arrays]:
    """Whole arrays cut into what each stage of this process holds, on its devices."""
    placed: dict[str, Arrays] = {stage: {} for stage in local}
    for path, whole in find_parts(name, shapes, parts).items():
        array = np.asarray(arrays[path])
        starts = {each.stage: each.start for each in whole.slices} if whole.stacked else {}
        for stage, aval in whole.parts.items():
            if stage in local:
                part = array[starts[stage] : starts[stage] + aval.shape[0]] if whole.stacked else array
                placed[stage][path] = to_devices(part.astype(aval.dtype), aval.sharding)
    return placed
