"""Cuts modules into stages on their meshes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import jax
from flax import nnx
from jax.typing import DTypeLike

from hetjax.errors import GraphError
from hetjax.graph import ModuleGraph, input_ports, optional_ports, output_ports
from hetjax.meshes import Layout, PlacementError, ResolvedPlacement
from hetjax.models.errors import ModelError
from hetjax.models.remat import Remat
from hetjax.models.stages import balanced_layers
from hetjax.stages.flat_state import flatten_module
from hetjax.stages.frozen import frozen_paths
from hetjax.stages.placed_shapes import placed_shapes
from hetjax.stages.stage import Stage
from hetjax.stages.windows import ONE_MICROBATCH, Window


def cut_graph(
    graph: ModuleGraph,
    placement: ResolvedPlacement,
    *,
    devices: Sequence[jax.Device],
    frozen: Collection[str],
    param_dtype: DTypeLike,
    compute_dtype: DTypeLike | None,
    trained: Collection[str] | None = None,
    remat: Mapping[str, Remat] = MappingProxyType({}),
    replaced_kernels: frozenset[str] = frozenset(),
    windows: Mapping[str, Window] = MappingProxyType({}),
) -> tuple[Stage, ...]:
    """Return all stages in topological order; `frozen` and `trained` as in `hetjax.stages.frozen.frozen_paths`.

    `windows` are those of modules that take several microbatches at once.

    Raises GraphError, ConfigError and PlacementError.
    """
    _check_modules(graph, placement)
    frozen_in = frozen_paths(graph, frozen, trained)
    stages = []
    for module in graph.order:
        layout = placement.placement[module]
        layers = _layers(graph.abstract(module), module, layout)
        for index in range(layout.stage_count):
            part = cut_module(graph.abstract(module), module, index, layout.stage_count, layers)
            skeleton, params, buffers = flatten_module(part)
            mesh = placement.mesh(module, index, devices)
            frozen_params = {path: aval for path, aval in params.items() if path in frozen_in[module]}
            trained_params = {path: aval for path, aval in params.items() if path not in frozen_params}
            # A frozen weight needs no master copy: it is kept as it is computed with.
            placed = {
                **placed_shapes(trained_params, skeleton, layout.optimizer_spec, mesh, module, param_dtype),
                **placed_shapes(
                    frozen_params, skeleton, layout.compute_spec, mesh, module, compute_dtype or param_dtype
                ),
            }
            stages.append(
                Stage(
                    name=module if layout.stage_count == 1 else f"{module}.{index}",
                    module=module,
                    index=index,
                    count=layout.stage_count,
                    layers=layers,
                    layout=layout,
                    mesh=mesh,
                    skeleton=skeleton,
                    params={path: placed[path] for path in params},
                    buffers=placed_shapes(buffers, skeleton, layout.weight_spec, mesh, module, None),
                    inputs=input_ports(part),
                    optional=optional_ports(part),
                    output_ports=output_ports(part),
                    port_dims=dict(getattr(part, "port_dims", {})),
                    frozen=frozenset(frozen_params),
                    compute_dtype=compute_dtype,
                    remat=remat.get(module, "none"),
                    replaced_kernels=replaced_kernels,
                    independent_samples=getattr(part, "independent_samples", False),
                    ends_steps=hasattr(part, "end_of_step"),
                    window=windows.get(module, ONE_MICROBATCH),
                    loss_weight=graph.losses.get(module) if index == layout.stage_count - 1 else None,
                    input_ranges=dict(getattr(part, "input_ranges", {})),
                    counted_by=dict(getattr(part, "counted_by", {})),
                )
            )
    return tuple(stages)


def _layers(module: nnx.Module, name: str, layout: Layout) -> tuple[int, ...] | None:
    """The number of layers of each stage, None where the module decides. Raises GraphError."""
    if layout.layers == "even":
        return None
    if layout.layers != "balanced":
        return tuple(layout.layers)
    if layout.stage_count == 1:
        return None
    if not hasattr(module, "layer_costs"):
        raise GraphError(
            f"module '{name}': its layout has layers=balanced, but {type(module).__name__} has no property "
            "layer_costs (hetjax.models.stages.LayerCosts) to balance by; add it, or list the layers of each stage"
        )
    try:
        return balanced_layers(module.layer_costs, layout.stage_count)
    except ModelError as error:
        raise GraphError(f"module '{name}': {error}") from None


def cut_module(
    module: nnx.Module, name: str, index: int, count: int, layers: Sequence[int] | None = None
) -> nnx.Module:
    """Return the part of a module for one stage of `count`, with weights or with shapes alone. Raises GraphError.

    `layers` says how many layers each stage has, for a module whose `stage` takes that.
    """
    if count == 1 and layers is None:
        return module
    if not hasattr(module, "stage"):
        raise GraphError(
            f"module '{name}': its layout has stage={count}, but {type(module).__name__} has no method "
            "stage(index, count) that cuts it; add one or set stage=1"
        )
    if layers is not None and "layers" not in inspect.signature(module.stage).parameters:
        raise GraphError(
            f"module '{name}': its layout lists the layers of each stage, but stage(index, count) of "
            f"{type(module).__name__} takes no parameter layers; add it or set layers=even"
        )
    listed = {} if layers is None else {"layers": layers}
    definition, state = nnx.split(module)
    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
    # With variables of its own, so that a `stage` which cuts in place leaves the module given as it is.
    cut = lambda state: nnx.merge(definition, state, copy=True).stage(index, count, **listed)  # noqa: E731
    with nnx.use_eager_sharding(False):
        return nnx.eval_shape(cut, state) if is_abstract else cut(state)


def _check_modules(graph: ModuleGraph, placement: ResolvedPlacement) -> None:
    modules, placed = set(graph.modules), set(placement.placement)
    if modules - placed:
        raise PlacementError(f"placement has no layout for module '{min(modules - placed)}'; add one")
    if placed - modules:
        raise PlacementError(
            f"placement names module '{min(placed - modules)}', which the graph lacks; its modules are "
            f"{', '.join(graph.modules)}"
        )
