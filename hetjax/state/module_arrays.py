"""Finds the arrays of a whole module in its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from hetjax.errors import GraphError
from hetjax.graph import ModuleGraph
from hetjax.stages.flat_state import Arrays, Shapes, flatten_module
from hetjax.stages.stage import Stage
from hetjax.state.whole_array import WholeArray


def find_parts(
    module: str, whole: Shapes, parts: Mapping[str, Mapping[str, jax.Array | jax.ShapeDtypeStruct]]
) -> dict[str, WholeArray]:
    """Return every array of the whole module by path, with the parts that its stages hold.

    `whole` has shapes by path, `parts` shapes or arrays by stage name, in stage order, and path.
    Raises GraphError when a stage holds what the whole module lacks, or the other way round, or when
    the layers of the stages do not add up.
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
    same_layers = all(len(part) == len(shape) > 0 and part[1:] == shape[1:] for part in shapes)
    if not same_layers or sum(part[0] for part in shapes) != shape[0]:
        raise GraphError(
            f"{name}: the whole module has shape {shape}, but its stages {', '.join(parts)} hold "
            f"{', '.join(map(str, shapes))}; they must hold slices of its leading dim that add up, or all of it each"
        )
    return WholeArray(name=name, shape=shape, parts=parts, stacked=True)


def whole_shapes(graph: ModuleGraph, module: str) -> tuple[Shapes, Shapes]:
    """Return shapes and dtypes of the whole module by path: (params, buffers)."""
    _, params, buffers = flatten_module(graph.abstract(module))
    return params, buffers


def merge_stages(
    graph: ModuleGraph, stages: Sequence[Stage], arrays: Mapping[str, Arrays]
) -> dict[str, dict[str, np.ndarray]]:
    """Return host copies of params (or what mirrors them), given by stage, by module and whole-module path.

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
