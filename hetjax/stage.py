"""Modules cut into stages, each with its mesh."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.errors import BatchError, GraphError
from hetjax.graph import ModuleGraph, input_ports, optional_ports
from hetjax.weights import Arrays, Skeleton, take_apart
from meshes import Layout, PlacementError, ResolvedPlacement
from models.dims import Dims, Splits, layout_in_force
from models.errors import LayoutError, ModelError
from models.remat import Remat
from models.stages import balanced_layers

Shapes = dict[str, jax.ShapeDtypeStruct]

LOSS = "loss"
"""The port of the module that ends the graph: a sum over tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One pipeline slice of a module on its mesh.

    Attributes:
        name: the module's name, with ".0", ".1", ... when it has several stages.
        module, index, count: which part of which module.
        layers: how many layers each of the module's stages has; None where the module decides.
        layout, mesh: the module's degrees and this stage's mesh.
        skeleton: the part without its arrays.
        params: shape, master dtype and sharding of every weight.
        buffers: the same of the state that does not train.
        inputs, optional: input ports, and those that may be left out.
        port_dims: dim names of the ports that have them.
        trains: whether its weights are updated; a module without any has nothing to train.
        compute_dtype: dtype of the weights inside programs; None leaves them as they are.
        remat: what its layers keep for the backward, as `models.remat` has it.
        independent_samples: whether no sample's outputs depend on another sample of the batch.
        ends_steps: whether the part has a method `end_of_step`.
    """

    name: str
    module: str
    index: int
    count: int
    layers: tuple[int, ...] | None
    layout: Layout
    mesh: Mesh
    skeleton: Skeleton
    params: Shapes
    buffers: Shapes
    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    port_dims: Mapping[str, Dims]
    trains: bool
    compute_dtype: Any
    remat: Remat = "none"
    independent_samples: bool = False
    ends_steps: bool = False

    @functools.cached_property
    def is_local(self) -> bool:
        """Whether this process runs the stage: a device of its mesh is its own."""
        return bool(self.mesh.local_devices)

    @functools.cached_property
    def replicated(self) -> NamedSharding:
        """A copy on every device of the mesh."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def compute_params(self) -> Shapes:
        """The weights as programs see them."""
        whole = _placed(self.params, self.skeleton, self.layout.compute_spec, self.mesh, self.module, None)
        return {path: _cast_shape(shape, self.compute_dtype) for path, shape in whole.items()}

    @functools.cached_property
    def cast_params(self) -> Shapes:
        """Those weights that programs see in another dtype, or in other parts, than they are kept in."""
        return {
            path: aval
            for path, aval in self.compute_params.items()
            if (aval.dtype, aval.sharding) != (self.params[path].dtype, self.params[path].sharding)
        }

    @property
    def gradient_shards(self) -> int:
        """Shards of the batch that keep gradients of their own, which are added up once a step.

        All of `data` where samples do not see each other and calls change no state, else 1: the backward of each
        microbatch then adds up.
        """
        return self.layout.data if self.independent_samples and not self.buffers else 1

    @property
    def independent_devices(self) -> bool:
        """Whether no collective runs in its forward and backward: the batch alone is split, and over `data` alone."""
        shares_nothing = self.independent_samples and not self.buffers
        return shares_nothing and self.mesh.size == self.layout.data

    @functools.cached_property
    def gradients(self) -> Shapes:
        """The sums of gradients as microbatches add to them, with a leading dim where shards keep their own."""
        if not self.trains:
            return {}
        if self.gradient_shards == 1:
            return self.params
        return {
            path: jax.ShapeDtypeStruct(
                (self.gradient_shards, *aval.shape),
                aval.dtype,
                sharding=NamedSharding(self.mesh, PartitionSpec("data", *aval.sharding.spec)),
            )
            for path, aval in self.params.items()
        }

    @functools.cached_property
    def of_one_shard(self) -> Stage:
        """The stage as one shard of `data` runs it on its own samples, beside the others on the same mesh."""
        return dataclasses.replace(self, layout=dataclasses.replace(self.layout, data=1))

    def port_sharding(self, port: str, shape: Sequence[int]) -> NamedSharding:
        """Where the array of a port lives: its leading dim is the batch unless `port_dims` says otherwise."""
        dims = self.port_dims.get(port, ("batch", *[None] * (len(shape) - 1)) if shape else ())
        return self.activation_sharding(dims, shape, what=f"port '{port}'")

    def activation_sharding(self, dims: Dims, shape: Sequence[int], *, what: str = "activation") -> NamedSharding:
        """Where an activation with these dim names lives. Raises BatchError when it does not divide."""
        name = f"module '{self.module}': {what} of shape {tuple(shape)}"
        try:
            return NamedSharding(self.mesh, self.layout.activation_spec(dims, shape, name=name))
        except PlacementError as error:
            raise BatchError(str(error)) from None

    def in_force(self):
        """A block inside which the model's `constrain` and `split_of` calls follow this stage's layout."""

        def constraint(x: jax.Array, dims: Dims) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, self.activation_sharding(dims, x.shape))

        device = self.mesh.devices.flat[0]
        if self.mesh.size == 1:
            return layout_in_force(lambda x, dims: x, device=device)
        splits = Splits(
            mesh=self.mesh,
            axes_of=self.layout.activation_axes,
            weight_axes_of=self.layout.compute_axes,
            gradient_axes_of=self.layout.weight_axes if self.trains else self.layout.compute_axes,
            context_attention=self.layout.context_attention,
        )
        return layout_in_force(constraint, splits, device)

    def call(self, params: Arrays, buffers: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Run the part: (outputs by port, buffers after the call). Pure; to be traced.

        Raises BatchError where an input does not divide as the layout asks, GraphError where the call changes the
        state's shapes.
        """
        module = self.skeleton.assemble(params, buffers)
        with self.in_force():
            try:
                outputs = module(**inputs)
            except LayoutError as error:
                raise BatchError(f"module '{self.module}': {error}") from None
        if not isinstance(outputs, Mapping):
            outputs = {"output": outputs}
        skeleton, _, after = take_apart(module)
        if skeleton.paths != self.skeleton.paths:
            new = sorted(set(skeleton.paths) ^ set(self.skeleton.paths))
            raise GraphError(
                f"module '{self.module}': calling it changed its state tree ({', '.join(new)}); keep it fixed"
            )
        for path, array in after.items():
            before = self.buffers[path]
            if (array.shape, array.dtype) != (before.shape, before.dtype):
                raise GraphError(
                    f"module '{self.module}': calling it turned {path} from {before.dtype}{list(before.shape)} into "
                    f"{array.dtype}{list(array.shape)}; keep its shape and dtype, or build it as what it becomes"
                )
        return dict(outputs), after


def cut_graph(
    graph: ModuleGraph,
    placement: ResolvedPlacement,
    *,
    devices: Sequence[jax.Device],
    frozen: Iterable[str],
    param_dtype: Any,
    compute_dtype: Any,
    remat: Mapping[str, Remat] = MappingProxyType({}),
) -> tuple[Stage, ...]:
    """All stages in topological order. Raises GraphError and PlacementError."""
    _check_modules(graph, placement, frozen)
    trained = {name for name in graph.modules if name not in frozen and take_apart(graph.abstract(name))[1]}
    if not trained:
        raise GraphError(
            f"all modules of {', '.join(graph.modules)} are frozen or without weights (nnx.Param); "
            "leave at least one to train"
        )
    stages = []
    for module in graph.order:
        layout = placement.placement[module]
        layers = _layers(graph.abstract(module), module, layout)
        for index in range(layout.stage_count):
            part = cut_module(graph.abstract(module), module, index, layout.stage_count, layers)
            skeleton, params, buffers = take_apart(part)
            mesh = placement.mesh(module, index % layout.stage, devices)
            trains = module in trained
            # A frozen module needs no master copy: its weights are kept as they are computed with.
            dtype = param_dtype if trains else (compute_dtype or param_dtype)
            spec = layout.weight_spec if trains else layout.compute_spec
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
                    params=_placed(params, skeleton, spec, mesh, module, dtype),
                    buffers=_placed(buffers, skeleton, layout.weight_spec, mesh, module, None),
                    inputs=input_ports(part),
                    optional=optional_ports(part),
                    port_dims=dict(getattr(part, "port_dims", {})),
                    trains=trains,
                    compute_dtype=compute_dtype,
                    remat=remat.get(module, "none"),
                    independent_samples=getattr(part, "independent_samples", False),
                    ends_steps=hasattr(part, "end_of_step"),
                )
            )
    return tuple(stages)


def _layers(module: nnx.Module, name: str, layout: Layout) -> tuple[int, ...] | None:
    """How many layers each stage has, None where the module is to decide. Raises GraphError."""
    if layout.stage_count == 1 or layout.layers == "even":
        return None
    if layout.layers != "balanced":
        return tuple(layout.layers)
    if not hasattr(module, "layer_costs"):
        raise GraphError(
            f"module '{name}': its layout has layers=balanced, but {type(module).__name__} has no property "
            "layer_costs (models.stages.LayerCosts) to balance by; add it, or list the layers of each stage"
        )
    try:
        return balanced_layers(module.layer_costs, layout.stage_count)
    except ModelError as error:
        raise GraphError(f"module '{name}': {error}") from None


def cut_module(
    module: nnx.Module, name: str, index: int, count: int, layers: Sequence[int] | None = None
) -> nnx.Module:
    """The part of a module for one stage of `count`, with weights or with shapes alone. Raises GraphError.

    `layers` says how many layers each stage has, for a module whose `stage` takes that.
    """
    if count == 1:
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


def _check_modules(graph: ModuleGraph, placement: ResolvedPlacement, frozen: Iterable[str]) -> None:
    modules, placed, frozen = set(graph.modules), set(placement.placement), set(frozen)
    if modules - placed:
        raise PlacementError(f"placement has no layout for module '{min(modules - placed)}'; add one")
    for what, names in (("placement", placed), ("frozen", frozen)):
        if names - modules:
            raise PlacementError(
                f"{what} names module '{min(names - modules)}', which the graph lacks; its modules are "
                f"{', '.join(graph.modules)}"
            )


def _placed(
    arrays: Mapping[str, Any],
    skeleton: Skeleton,
    spec_of: Callable[..., PartitionSpec],
    mesh: Mesh,
    module: str,
    dtype: Any,
) -> Shapes:
    placed = {}
    for path, array in arrays.items():
        dims = skeleton.dims.get(path, (None,) * len(array.shape))
        spec = spec_of(dims, array.shape, name=f"module '{module}': weight {path} of shape {array.shape}")
        shape = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
        placed[path] = _cast_shape(shape, dtype)
    return placed


def _cast_shape(shape: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    if dtype is None or not jnp.issubdtype(shape.dtype, jnp.floating):
        return shape
    return jax.ShapeDtypeStruct(shape.shape, dtype, sharding=shape.sharding)
