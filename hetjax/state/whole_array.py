"""One array of a whole module, held by the module's stages on their meshes.

A stage's arrays have the paths of the whole module. An array that the whole module holds with more entries in its
leading dim is stacked over layers: each stage that holds it has a slice of the layers, in stage order. An array of
the whole module's own shape lives in one stage, or is the same in several.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hetjax.meshes import local_devices


class LayerSlice(NamedTuple):
    """The layers start..stop-1 of a stacked array, which a stage holds."""

    stage: str
    start: int
    stop: int
    sharding: NamedSharding


@dataclasses.dataclass(frozen=True)
class LayerSlices:
    """A stacked array that is no one `jax.Array`.

    Attributes:
        shape, dtype: those of the whole array.
        slices: the layers of every stage, in order.
        held: what the stages of this process hold, by stage name.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    slices: tuple[LayerSlice, ...]
    held: Mapping[str, jax.Array]

    def slice_of(self, stage: str) -> LayerSlice:
        """Return the layers of a stage."""
        return next(each for each in self.slices if each.stage == stage)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeArray:
    """An array of the whole module, and the stages that hold it.

    Where every stage has a mesh of its own and as many layers as any other, the stages' arrays are the shards of one
    array; else, with uneven stages or several chunks a device, they are `LayerSlices`.

    Attributes:
        name: module and path, for messages.
        shape: shape in the whole module.
        parts: shape, dtype and sharding of what each stage holds of it, by stage name, in stage order.
        stacked: whether each stage holds a slice of its layers (the leading dim), rather than all of it.
    """

    name: str
    shape: tuple[int, ...]
    parts: Mapping[str, jax.ShapeDtypeStruct]
    stacked: bool

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the parts."""
        return next(iter(self.parts.values())).dtype

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the whole array, and the sharding that makes the parts its shards, if there is one."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=None if self.is_sliced else self._sharding)

    @property
    def is_local(self) -> bool:
        """Whether a device of this process holds some of it."""
        return any(local_devices(part.sharding.device_set) for part in self.parts.values())

    @property
    def is_sliced(self) -> bool:
        """Whether it takes `LayerSlices` to hold it."""
        layers = {part.shape[0] for part in self.parts.values()} if self.stacked else {0}
        return self.stacked and (len(layers) > 1 or len(self._by_mesh) < len(self.parts))

    @functools.cached_property
    def slices(self) -> tuple[LayerSlice, ...]:
        """The layers of each stage, for a stacked array."""
        stops = itertools.accumulate(part.shape[0] for part in self.parts.values())
        return tuple(
            LayerSlice(stage, stop - part.shape[0], stop, part.sharding)
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

    def join(self, parts: Mapping[str, jax.Array]) -> jax.Array | LayerSlices:
        """Return the whole array on the devices; its shards are the parts' own memory.

        `parts` has this process's stages; of an array that none of them holds there is no shard.
        """
        if self.is_sliced:
            held = {stage: parts[stage] for stage in self.parts if stage in parts}
            return LayerSlices(self.shape, self.dtype, self.slices, held)
        stages = reversed(self._by_mesh.values())
        shards = [shard.data for stage in stages if stage in parts for shard in parts[stage].addressable_shards]
        return jax.make_array_from_single_device_arrays(self.shape, self._sharding, shards, dtype=self.dtype)

    def split(self, whole: jax.Array | LayerSlices) -> dict[str, jax.Array]:
        """Return what each stage of this process holds of a whole array as `join` makes it, in the array's own memory.

        Stages that share a mesh get copies, but for one: what a step of one consumes is nobody else's.
        """
        if isinstance(whole, LayerSlices):
            return dict(whole.held)
        shards = {shard.device: shard.data for shard in whole.addressable_shards}
        owners = set(self._by_mesh.values())
        found = {}
        for stage, part in self.parts.items():
            own = [shards[device] for device in part.sharding.mesh.devices.flat if device in shards]
            if local_devices(part.sharding.device_set):
                found[stage] = jax.make_array_from_single_device_arrays(
                    part.shape,
                    part.sharding,
                    own if stage in owners else [jnp.copy(shard) for shard in own],
                    dtype=self.dtype,
                )
        return found

    def join_on_host(self, parts: Mapping[str, jax.Array]) -> np.ndarray:
        """Return a host copy of the whole array."""
        if not self.stacked:
            return jax.device_get(parts[next(iter(self.parts))])
        return np.concatenate(jax.device_get([parts[stage] for stage in self.parts]))
