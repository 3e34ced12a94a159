"""A module's stages seen as the whole module, and back.

A stage's arrays have the paths of the whole module. An array that the whole module holds with more
rows is stacked over layers, and each stage that holds it has a run of its rows, in stage order. An
array of the whole module's own shape lives in one stage, or is the same in several.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hetjax.errors import GraphError
from hetjax.graph import ModuleGraph
from hetjax.programs.update import Update
from hetjax.stages.flat_state import Arrays, take_apart
from hetjax.stages.stage import Shapes, Stage
from hetjax.state.train_state import StageState, TrainState


class Run(NamedTuple):
    """The rows start..stop-1 of a stacked array, which a stage holds."""

    stage: str
    start: int
    stop: int
    sharding: NamedSharding


@dataclasses.dataclass(frozen=True)
class Runs:
    """A stacked array that is no one `jax.Array`: what this process's stages hold of it, by name, and all runs."""

    shape: tuple[int, ...]
    dtype: Any
    runs: tuple[Run, ...]
    held: Mapping[str, jax.Array]

    def run_of(self, stage: str) -> Run:
        """The rows of a stage."""
        return next(run for run in self.runs if run.stage == stage)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeArray:
    """An array of the whole module, and the stages that hold it.

    Where every stage has a mesh of its own and as many rows as any other, they are the shards of one array;
    else, with uneven stages or several chunks a device, they are `Runs`.

    Attributes:
        name: module and path, for messages.
        shape: shape in the whole module.
        parts: what each stage holds of it by stage name, in stage order, with its sharding.
        stacked: whether the stages hold runs of its rows, rather than all of it each.
    """

    name: str
    shape: tuple[int, ...]
    parts: Mapping[str, jax.ShapeDtypeStruct]
    stacked: bool

    @property
    def dtype(self) -> Any:
        """Dtype of the parts."""
        return next(iter(self.parts.values())).dtype

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the whole array, and the sharding that makes the parts its shards, if there is one."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=None if self.in_runs else self._sharding)

    @property
    def is_local(self) -> bool:
        """Whether a device of this process holds some of it."""
        return any(part.sharding.addressable_devices for part in self.parts.values())

    @property
    def in_runs(self) -> bool:
        """Whether it takes `Runs` to hold it."""
        rows = {part.shape[0] for part in self.parts.values()} if self.stacked else {0}
        return self.stacked and (len(rows) > 1 or len(self._by_mesh) < len(self.parts))

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """The rows of each stage of a stacked array."""
        stops = itertools.accumulate(part.shape[0] for part in self.parts.values())
        return tuple(
            Run(stage, stop - part.shape[0], stop, part.sharding)
            for (stage, part), stop in zip(self.parts.items(), stops, strict=True)
        )

    @functools.cached_property
    def _by_mesh(self) -> dict[tuple[jax.Device, ...], str]:
        """A stage for each mesh."""
        return {tuple(part.sharding.mesh.devices.flat): stage for stage, part in reversed(self.parts.items())}

    @functools.cached_property
    def _sharding(self) -> NamedSharding:
        first, *others = [self.parts[stage].sharding for stage in reversed(self._by_mesh.values())]
        # The stages' meshes, one behind the other, are one mesh whose outermost axis is the stage.
        devices = np.stack([first.mesh.devices, *(other.mesh.devices for other in others)])
        axes = ("stage", *first.mesh.axis_names)
        mesh = Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))
        if not self.stacked:
            return NamedSharding(mesh, first.spec)
        within, *rest = tuple(first.spec) or (None,)
        within = () if within is None else (within,) if isinstance(within, str) else tuple(within)
        return NamedSharding(mesh, PartitionSpec(("stage", *within), *rest))

    def join(self, parts: Mapping[str, jax.Array]) -> jax.Array | Runs:
        """The whole array on the devices; its shards are the parts' own memory.

        `parts` has this process's stages; of an array that none of them holds there is no shard.
        """
        if self.in_runs:
            held = {stage: parts[stage] for stage in self.parts if stage in parts}
            return Runs(self.shape, self.dtype, self.runs, held)
        stages = reversed(self._by_mesh.values())
        shards = [shard.data for stage in stages if stage in parts for shard in parts[stage].addressable_shards]
        return jax.make_array_from_single_device_arrays(self.shape, self._sharding, shards, dtype=self.dtype)

    def split(self, whole: jax.Array | Runs) -> dict[str, jax.Array]:
        """What each stage of this process holds of a whole array as `join` makes it, in the array's own memory.

        Stages that share a mesh get copies, but for one: what a step of one consumes is nobody else's.
        """
        if isinstance(whole, Runs):
            return dict(whole.held)
        shards = {shard.device: shard.data for shard in whole.addressable_shards}
        owners = set(self._by_mesh.values())
        found = {}
        for stage, part in self.parts.items():
            own = [shards[device] for device in part.sharding.mesh.devices.flat if device in shards]
            if part.sharding.addressable_devices:
                found[stage] = jax.make_array_from_single_device_arrays(
                    part.shape,
                    part.sharding,
                    own if stage in owners else [jnp.copy(shard) for shard in own],
                    dtype=self.dtype,
                )
        return found

    def join_on_host(self, parts: Mapping[str, jax.Array]) -> np.ndarray:
        """A host copy of the whole array."""
        if not self.stacked:
            return jax.device_get(parts[next(iter(self.parts))])
        return np.concatenate(jax.device_get([parts[stage] for stage in self.parts]))


def find_parts(module: str, whole: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> dict[str, WholeArray]:
    """Every array of the whole module by path, with the parts that its stages hold.

    `whole` has shapes by path, `parts` shapes or arrays by stage name, in stage order, and path.
    Raises GraphError when a stage holds what the whole module lacks, or the other way round, or when
    the rows of the stages do not add up.
    """
    for stage, held in parts.items():
        if held.keys() - whole.keys():
            unknown = min(held.keys() - whole.keys())
            raise GraphError(
                f"module '{module}': its stage '{stage}' holds {unknown}, which the whole module lacks; "
                "stage(index, count) must keep the paths of the whole module"
            )
    found = {}
    for path, aval in whole.items():
        holders = {
            stage: jax.ShapeDtypeStruct(held[path].shape, held[path].dtype, sharding=held[path].sharding)
            for stage, held in parts.items()
            if path in held
        }
        found[path] = _whole_array(f"module '{module}': {path}", tuple(aval.shape), holders)
    return found


def _whole_array(name: str, shape: tuple[int, ...], parts: dict[str, jax.ShapeDtypeStruct]) -> WholeArray:
    if not parts:
        raise GraphError(f"{name}: no stage holds it; stage(index, count) must leave every array to some stage")
    if all(part.shape == shape for part in parts.values()):
        return WholeArray(name=name, shape=shape, parts=parts, stacked=False)
    shapes = [tuple(part.shape) for part in parts.values()]
    same_rows = all(len(part) == len(shape) > 0 and part[1:] == shape[1:] for part in shapes)
    if not same_rows or sum(part[0] for part in shapes) != shape[0]:
        raise GraphError(
            f"{name}: the whole module has shape {shape}, but its stages {', '.join(parts)} hold "
            f"{', '.join(map(str, shapes))}; they must hold runs of its rows that add up, or all of it each"
        )
    return WholeArray(name=name, shape=shape, parts=parts, stacked=True)


def whole_shapes(graph: ModuleGraph, module: str) -> tuple[Shapes, Shapes]:
    """Shapes and dtypes of the whole module by path: (params, buffers)."""
    _, params, buffers = take_apart(graph.abstract(module))
    return params, buffers


def merge_stages(
    graph: ModuleGraph, stages: Sequence[Stage], arrays: Mapping[str, Arrays]
) -> dict[str, dict[str, np.ndarray]]:
    """Host copies of params (or what mirrors them) given by stage, by module and whole-module path.

    An array that no stage gives, such as the gradient of a frozen weight, has no entry. Raises GraphError as
    `find_parts`.
    """
    merged: dict[str, dict[str, np.ndarray]] = {}
    for module in graph.order:
        held = {stage.name: arrays[stage.name] for stage in stages if stage.module == module and stage.name in arrays}
        given = {path for each in held.values() for path in each}
        found = find_parts(module, {p: a for p, a in whole_shapes(graph, module)[0].items() if p in given}, held)
        merged[module] = {
            path: whole.join_on_host({stage: held[stage][path] for stage in whole.parts})
            for path, whole in found.items()
        }
    return merged


# ── the whole state ──────────────────────────────────────────────────────────────────────────────


def whole_module(
    graph: ModuleGraph, module: str, stages: Sequence[Stage], updates: Mapping[str, Update]
) -> dict[str, dict[str, WholeArray]]:
    """Every array of a module's training state by kind and path.

    The kinds are "params", "buffers" and, for a module that trains, "opt_state", whose paths are those
    of the optimizer's tree. Raises GraphError as `find_parts`.
    """
    stages = [stage for stage in stages if stage.module == module]
    params, buffers = whole_shapes(graph, module)
    kinds = {
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
        opt_state = jax.eval_shape(updates[training[0].name].optimizer.init, master)
        parts = {stage.name: by_path(updates[stage.name].opt_state) for stage in training}
        kinds["opt_state"] = find_parts(module, by_path(opt_state), parts)
    return kinds


def join_module(kinds: Mapping[str, Mapping[str, WholeArray]], state: TrainState) -> dict[str, Arrays]:
    """A module's whole arrays on the devices by kind and path, for what `whole_module` found.

    `state` has the stages that this process runs; the arrays have the shards that these hold.
    """
    held = {
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


def split_module(
    kinds: Mapping[str, Mapping[str, WholeArray]],
    arrays: Mapping[str, Arrays],
    stages: Sequence[Stage],
    updates: Mapping[str, Update],
) -> dict[str, StageState]:
    """The states of a module's stages from its whole arrays; without "opt_state" in `arrays` a fresh one.

    `stages` are those that this process runs, and `arrays` what they hold some of.
    """
    held = {stage.name: {kind: {} for kind in arrays} for stage in stages}
    for kind, found in arrays.items():
        for path, array in found.items():
            for stage, part in kinds[kind][path].split(array).items():
                held[stage][kind][path] = part
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


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by path, in tree order, e.g. "0/mu/layers/block/attention/query/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
