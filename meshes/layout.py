"""The degrees of one module, and which mesh axis each named dim rides on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from jax.sharding import PartitionSpec

from hetjax.meshes.devices import Devices, parse_devices
from hetjax.meshes.errors import PlacementError
from hetjax.meshes.optimizer_axes import COPY_AXES, divided_axes, kept_axes, possible_copies

#: Axes of a stage's mesh, outermost first: `tensor` is innermost, so that its devices are neighbours.
AXES = ("data", "fsdp", "expert", "context", "tensor")

#: Axes that split the batch dim.
BATCH_AXES = ("data", "fsdp", "expert")

ContextAttention = Literal["ring", "all_gather"]

Zero = Literal[1, 3]

_SHARED_AXES: dict[str, tuple[str, ...]] = {
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
}
_WEIGHT_AXES = {**_SHARED_AXES, "embed": ("fsdp",)}
_ACTIVATION_AXES = {**_SHARED_AXES, "batch": BATCH_AXES, "seq": ("context",), "residual_seq": ("context",)}
_SEQUENCE_PARALLEL_AXES = {**_ACTIVATION_AXES, "residual_seq": ("context", "tensor")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How one module is laid out: its devices and its degree along every axis.

    The product of all degrees equals the number of devices. Devices are filled stage by stage, and
    inside a stage with `tensor` innermost.

    Attributes:
        devices: device range ("0-3", "0,2,5-7", "all") or a list of device numbers.
        data: copies of the module, each fed with its own part of the batch.
        fsdp: splits the batch, and weights and optimizer state too.
        zero: what `fsdp` splits, by the stages of ZeRO (Rajbhandari et al. 2020): 3 all weights, each gathered where
            it is used; 1 master weights and optimizer state alone, gathered once a step to compute with.
        optimizer_copies: how many copies of master weights and optimizer state there are. 1 divides them over all
            devices that would hold copies of a weight, along `data`, `expert` (but for experts) and `context`; more
            keep copies along the outermost of these axes whose degrees have that product.
        expert: splits the batch, and the experts of a mixture.
        context: splits the sequence.
        context_attention: how attention sees the keys of other context shards: they travel around a
            "ring" while earlier ones are attended to, or are gathered before ("all_gather").
        tensor: splits heads, hidden and vocabulary.
        sequence_parallel: whether `tensor` splits the sequence too, between attentions and MLPs.
        stage: pipeline stages, each on a mesh of its own.
        chunks: stages on each of these meshes: the layers are cut into stage*chunks stages, and stage k goes to mesh
            k mod stage, for schedules that interleave them.
        layers: how many layers each stage has: as "even" as they come, "balanced" by cost, or a list of stage*chunks
            numbers.
        rules: further dim names and the axis each rides on, for a model with dims of its own,
            e.g. {"frames": "context"}; they win over the built-in ones.
    """

    devices: Devices = "all"
    data: int = 1
    fsdp: int = 1
    zero: Zero = 3
    optimizer_copies: int = 1
    expert: int = 1
    context: int = 1
    context_attention: ContextAttention = "ring"
    tensor: int = 1
    sequence_parallel: bool = True
    stage: int = 1
    chunks: int = 1
    layers: Literal["even", "balanced"] | Sequence[int] = "even"
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def mesh_shape(self) -> tuple[int, ...]:
        """Degrees in the order of `AXES`: the shape of one stage's mesh."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def device_count(self) -> int:
        """Devices that the degrees cover, all stages together."""
        return self.stage * math.prod(self.mesh_shape)

    @property
    def stage_count(self) -> int:
        """Stages that the module is cut into, all chunks counted."""
        return self.stage * self.chunks

    @property
    def batch_degree(self) -> int:
        """Parts that the batch dim is split into."""
        return math.prod(getattr(self, axis) for axis in BATCH_AXES)

    def validate(self, module: str) -> None:
        """Refuse degrees, devices or rules that no number of devices could serve. Raises PlacementError."""
        for axis in (*AXES, "stage", "chunks"):
            degree = getattr(self, axis)
            if not isinstance(degree, int) or degree < 1:
                raise PlacementError(f"module '{module}': {axis}={degree!r}; a degree is a whole number of 1 or more")
        for dim, axis in self.rules.items():
            if axis not in AXES:
                raise PlacementError(
                    f"module '{module}': rules put dim '{dim}' on axis '{axis}'; the axes are {', '.join(AXES)}"
                )
        self._check_copies(module)
        self._check_layers(module)
        for name, forms in (("context_attention", get_args(ContextAttention)), ("zero", get_args(Zero))):
            if getattr(self, name) not in forms:
                problem = f"module '{module}': {name}={getattr(self, name)!r}"
                raise PlacementError(f"{problem}; choose one of {', '.join(map(str, forms))}")
        listed = parse_devices(self.devices, module=module)
        if listed is not None:
            self.check_device_count(module, len(listed))

    def _check_copies(self, module: str) -> None:
        if self._kept_axes is not None:
            return
        along = ", ".join(f"{axis}={getattr(self, axis)}" for axis in COPY_AXES if getattr(self, axis) > 1)
        raise PlacementError(
            f"module '{module}': optimizer_copies={self.optimizer_copies!r}; copies lie along whole axes, so that with "
            f"{along or 'data=1'} there can be {', '.join(map(str, possible_copies(self._degrees)))}; for 2 copies "
            "over data=8 write data=2, fsdp=4, zero=1"
        )

    def _check_layers(self, module: str) -> None:
        if self.layers in ("even", "balanced"):
            return
        listed = isinstance(self.layers, Sequence) and not isinstance(self.layers, str)
        counts = list(self.layers) if listed else []
        if not counts or not all(type(count) is int and count > 0 for count in counts):
            raise PlacementError(
                f"module '{module}': layers={self.layers!r}; give even, balanced, or a list of numbers of 1 or more"
            )
        if len(counts) != self.stage_count:
            raise PlacementError(
                f"module '{module}': layers={counts} are {len(counts)} numbers, but stage*chunks = {self.stage}*"
                f"{self.chunks} = {self.stage_count}; give a number for each"
            )

    def check_device_count(self, module: str, have: int) -> None:
        """Raise PlacementError unless the degrees cover exactly `have` devices."""
        need = self.device_count
        if need == have:
            return
        degrees = {axis: getattr(self, axis) for axis in ("stage", *AXES) if getattr(self, axis) > 1} or {"data": 1}
        raise PlacementError(
            f"module '{module}': layout covers {'*'.join(degrees)} = {'*'.join(map(str, degrees.values()))} = {need} "
            f"devices, but devices={self.devices!r} are {have}; give it {need} devices or change a degree"
        )

    def weight_spec(self, dims: Sequence[str | None], shape: Sequence[int], *, name: str) -> PartitionSpec:
        """Return the partition of a weight whose dims carry these names. `name` is for the error message."""
        return self._spec(_WEIGHT_AXES, dims, shape, name)

    def optimizer_spec(self, dims: Sequence[str | None], shape: Sequence[int], *, name: str) -> PartitionSpec:
        """Return the partition of such a weight's master copy, gradient and optimizer state.

        That of `weight_spec`, divided further over axes along which the weight is copied.
        """
        self.weight_spec(dims, shape, name=name)
        return PartitionSpec(*(axes or None for axes in self.optimizer_axes(dims, shape)))

    def optimizer_axes(self, dims: Sequence[str | None], shape: Sequence[int]) -> tuple[tuple[str, ...], ...]:
        """Return the axes of each dim of a weight's master copy, gradient and optimizer state."""
        split = tuple(map(self.weight_axes, dims))
        spare = tuple(axis for axis in (*COPY_AXES, "fsdp") if getattr(self, axis) > 1 and axis not in self._kept_axes)
        return divided_axes(split, dims, shape, spare, self._degrees)

    def of_one_shard(self) -> Layout:
        """Return the layout of one of the `data` shards of the batch, alone."""
        copies = self.data if "data" in self._kept_axes else 1
        return dataclasses.replace(self, data=1, optimizer_copies=self.optimizer_copies // copies)

    @property
    def _degrees(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def _kept_axes(self) -> tuple[str, ...] | None:
        return kept_axes(self._degrees, self.optimizer_copies)

    def compute_spec(self, dims: Sequence[str | None], shape: Sequence[int], *, name: str) -> PartitionSpec:
        """Return the partition of such a weight in programs; with zero=1 it is not split by `fsdp`."""
        return self._spec(self._compute_table, dims, shape, name)

    def activation_spec(self, dims: Sequence[str | None], shape: Sequence[int], *, name: str) -> PartitionSpec:
        """Return the partition of an activation whose dims carry these names. `name` is for the error message."""
        return self._spec(self._activation_table, dims, shape, name)

    def activation_axes(self, dim: str) -> tuple[str, ...]:
        """Return the axes that an activation's dim rides on, those of degree 1 left out."""
        return self._axes(self._activation_table, dim)

    def weight_axes(self, dim: str | None) -> tuple[str, ...]:
        """Return the axes that a weight's dim rides on, those of degree 1 left out."""
        return self._axes(_WEIGHT_AXES, dim)

    def compute_axes(self, dim: str) -> tuple[str, ...]:
        """Return the axes that a weight's dim rides on in programs, those of degree 1 left out."""
        return self._axes(self._compute_table, dim)

    @property
    def _activation_table(self) -> Mapping[str, tuple[str, ...]]:
        return _SEQUENCE_PARALLEL_AXES if self.sequence_parallel else _ACTIVATION_AXES

    @property
    def _compute_table(self) -> Mapping[str, tuple[str, ...]]:
        return _WEIGHT_AXES if self.zero == 3 else _SHARED_AXES

    def _axes(self, table: Mapping[str, tuple[str, ...]], dim: str | None) -> tuple[str, ...]:
        axes = (self.rules[dim],) if dim in self.rules else table.get(dim or "", ())
        return tuple(axis for axis in axes if getattr(self, axis) > 1)

    def _spec(
        self, table: Mapping[str, tuple[str, ...]], dims: Sequence[str | None], shape: Sequence[int], name: str
    ) -> PartitionSpec:
        if len(dims) != len(shape):
            raise PlacementError(
                f"{name}: {len(dims)} dim names {tuple(dims)} for {len(shape)} dims of shape {tuple(shape)}; "
                "name each dim once, None for a dim without a name"
            )
        entries: list[tuple[str, ...] | None] = []
        taken: dict[str, str] = {}
        for dim, size in zip(dims, shape, strict=True):
            axes = self._axes(table, dim)
            for axis in axes:
                if axis in taken:
                    raise PlacementError(
                        f"{name}: dims '{taken[axis]}' and '{dim}' both ride on axis '{axis}' ({axis}="
                        f"{getattr(self, axis)}); put one on another axis with the layout's rules, or set {axis}=1"
                    )
                taken[axis] = str(dim)
            degree = math.prod(getattr(self, axis) for axis in axes)
            if size % degree:
                product = "*".join(f"{axis}={getattr(self, axis)}" for axis in axes)
                also = ", or set sequence_parallel=False" if dim == "residual_seq" and "tensor" in axes else ""
                raise PlacementError(
                    f"{name}: dim '{dim}' of size {size} is not divisible by {product} ({size} % {degree} = "
                    f"{size % degree}); change the size or the degree{also}"
                )
            entries.append(axes or None)
        return PartitionSpec(*entries)
