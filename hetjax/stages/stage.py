"""A stage: a part of a module, its layout and its mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from hetjax.errors import BatchError, GraphError
from hetjax.meshes import Layout, PlacementError, local_devices
from hetjax.models.dims import Dims
from hetjax.models.errors import LayoutError
from hetjax.models.parallel.layout_in_force import Splits, layout_in_force
from hetjax.models.parts.groups import groups_around
from hetjax.models.remat import Remat
from hetjax.stages.flat_state import Arrays, Shapes, Skeleton, flatten_module
from hetjax.stages.metric_ports import metrics_apart
from hetjax.stages.placed_shapes import cast_shape, placed_shapes
from hetjax.stages.windows import ONE_MICROBATCH, Window

LOSS = "loss"
"""The port of a module that holds a loss: a sum over tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One pipeline slice of a module on its mesh.

    Attributes:
        name: the module's name, with ".0", ".1", ... when it has several stages.
        module, index, count: which part of which module.
        layers: how many layers each of the module's stages has; None where the module decides.
        layout, mesh: the module's degrees and this stage's mesh.
        skeleton: the structure of the part, without its arrays.
        params: shape, master dtype and sharding of every weight, by path.
        buffers: the same of the state that does not train.
        inputs, optional: input ports, and those that may be left out.
        output_ports: the outputs that edges may leave from; None where the module does not say.
        port_dims: dim names of the ports that have them.
        input_ranges: the least and the largest id of inputs that hold ids.
        counted_by: of those the inputs of weights, whose zeros make their ids count nothing.
        frozen: paths of weights that are not updated; all of them in a stage that does not train.
        compute_dtype: dtype of the weights inside programs; None leaves them as they are.
        remat: what its layers keep for the backward, a setting of `hetjax.models.remat`.
        replaced_kernels: the kernels that its programs do without (`hetjax.execution.kernel_choice`).
        independent_samples: whether no sample's outputs depend on another sample of the batch.
        ends_steps: whether the part has a method `end_of_step`.
        window: the microbatches of the loss that its programs take at once.
        loss_weight: the weight of the loss that it returns; None where it returns none.
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
    output_ports: tuple[str, ...] | None
    port_dims: Mapping[str, Dims]
    frozen: frozenset[str]
    compute_dtype: DTypeLike | None
    remat: Remat = "none"
    replaced_kernels: frozenset[str] = frozenset()
    independent_samples: bool = False
    ends_steps: bool = False
    window: Window = ONE_MICROBATCH
    loss_weight: float | None = None
    input_ranges: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    counted_by: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def is_local(self) -> bool:
        """Whether this process has a device of the stage's mesh, and so runs the stage."""
        return bool(local_devices(self.mesh.devices.flat))

    @functools.cached_property
    def trained(self) -> Shapes:
        """The `params` that are updated."""
        return {path: aval for path, aval in self.params.items() if path not in self.frozen}

    @property
    def nests_layers(self) -> bool:
        """Whether its loops over layers have such loops in them, as those of a pattern of layers may."""
        return any(groups_around(path) > 1 for path in self.params)

    @property
    def trains(self) -> bool:
        """Whether any of its weights is updated; a module without weights has nothing to train."""
        return bool(self.trained)

    @functools.cached_property
    def replicated(self) -> NamedSharding:
        """The sharding of a copy on every device of the mesh."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def compute_params(self) -> Shapes:
        """The weights in the dtype and sharding that programs take them in."""
        placed = placed_shapes(self.params, self.skeleton, self.layout.compute_spec, self.mesh, self.module, None)
        return {path: cast_shape(shape, self.compute_dtype) for path, shape in placed.items()}

    @functools.cached_property
    def cast_params(self) -> Shapes:
        """The weights that programs take in another dtype or sharding than they are kept in."""
        return {
            path: aval
            for path, aval in self.compute_params.items()
            if (aval.dtype, aval.sharding) != (self.params[path].dtype, self.params[path].sharding)
        }

    @property
    def gradient_shards(self) -> int:
        """Shards of the batch that keep gradients of their own, which are added up once a step.

        All of `data` where samples do not see each other, calls change no state and `data` splits nothing but the
        batch, which leads all ports; else 1: the backward of each microbatch then adds up.
        """
        return self.layout.data if self._adds_up_by_shard else 1

    @property
    def independent_devices(self) -> bool:
        """Whether no collective runs in its forward and backward: the batch alone is split, and over `data` alone.

        But for the sum of the loss, where it holds one.
        """
        return self._adds_up_by_shard and self.mesh.size == self.layout.data

    @property
    def _adds_up_by_shard(self) -> bool:
        batch_leads = all(dims[:1] == ("batch",) for dims in self.port_dims.values())
        splits_batch_alone = "data" not in self.layout.rules.values()
        return self.independent_samples and not self.buffers and batch_leads and splits_batch_alone

    @functools.cached_property
    def gradients(self) -> Shapes:
        """Shapes of the sums of gradients that microbatches add to, with a leading dim where shards keep their own."""
        if self.gradient_shards == 1:
            return self.trained
        of_shard = self.of_one_shard.layout.optimizer_spec
        placed = placed_shapes(self.trained, self.skeleton, of_shard, self.mesh, self.module, None)
        return {
            path: jax.ShapeDtypeStruct(
                (self.gradient_shards, *aval.shape),
                aval.dtype,
                sharding=NamedSharding(self.mesh, PartitionSpec("data", *aval.sharding.spec)),
            )
            for path, aval in placed.items()
        }

    @functools.cached_property
    def of_one_shard(self) -> Stage:
        """The stage for one shard of `data`, which runs on its own samples beside the others on the same mesh."""
        return dataclasses.replace(self, layout=self.layout.of_one_shard())

    def port_sharding(self, port: str, shape: Sequence[int]) -> NamedSharding:
        """Return the sharding of a port's array; its leading dim is the batch unless `port_dims` says otherwise."""
        dims = self.port_dims.get(port, ("batch", *[None] * (len(shape) - 1)) if shape else ())
        return self.activation_sharding(dims, shape, what=f"port '{port}'")

    def activation_sharding(self, dims: Dims, shape: Sequence[int], *, what: str = "activation") -> NamedSharding:
        """Return the sharding of an activation with these dim names. Raises BatchError when it does not divide."""
        name = f"module '{self.module}': {what} of shape {tuple(shape)}"
        try:
            return NamedSharding(self.mesh, self.layout.activation_spec(dims, shape, name=name))
        except PlacementError as error:
            raise BatchError(str(error)) from None

    def in_force(self) -> AbstractContextManager[None]:
        """Return a context manager in which the model's `constrain` and `split_of` calls follow this stage's layout."""

        def constraint(x: jax.Array, dims: Dims) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, self.activation_sharding(dims, x.shape))

        device = self.mesh.devices.flat[0]
        if self.mesh.size == 1:
            return layout_in_force(lambda x, dims: x, device=device, replaced_kernels=self.replaced_kernels)
        splits = Splits(
            mesh=self.mesh,
            axes_of=self.layout.activation_axes,
            weight_axes_of=self.layout.compute_axes,
            gradient_axes_of=self.layout.optimizer_axes,
            context_attention=self.layout.context_attention,
        )
        return layout_in_force(constraint, splits, device, self.replaced_kernels)

    def call(self, params: Arrays, buffers: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Run the part: (outputs by port, buffers after the call). Pure; to be traced.

        Raises BatchError where an input does not divide as the layout asks, GraphError where the call changes the
        state's shapes.
        """
        with self.in_force():
            return self.call_whole(params, buffers, inputs)

    def call_whole(self, params: Arrays, buffers: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Run the part without the layout in force, as one device would; else as `call`."""
        module = self.skeleton.assemble(params, buffers)
        try:
            outputs = module(**inputs)
        except LayoutError as error:
            raise BatchError(f"module '{self.module}': {error}") from None
        if not isinstance(outputs, Mapping):
            outputs = {"output": outputs}
        skeleton, _, after = flatten_module(module)
        self._check_state_kept(skeleton, after)
        return metrics_apart(outputs, module=self.module), after

    def _check_state_kept(self, skeleton: Skeleton, buffers: Arrays) -> None:
        """Raise GraphError unless a call has left the state tree, and every buffer's shape and dtype, as they were."""
        if skeleton.paths != self.skeleton.paths:
            new = sorted(set(skeleton.paths) ^ set(self.skeleton.paths))
            raise GraphError(
                f"module '{self.module}': calling it changed its state tree ({', '.join(new)}); keep it fixed"
            )
        for path, array in buffers.items():
            before = self.buffers[path]
            if (array.shape, array.dtype) != (before.shape, before.dtype):
                raise GraphError(
                    f"module '{self.module}': calling it turned {path} from {before.dtype}{list(before.shape)} into "
                    f"{array.dtype}{list(array.shape)}; keep its shape and dtype, or build it as what it becomes"
                )
