"""Read weights of modules from another source straight into the shardings of this trainer.

A device's part of an array is read for itself; no whole array is made.
"""

from __future__ import annotations

from typing import Protocol

import jax
import numpy as np
from flax import nnx

from hetjax.errors import ConfigError
from hetjax.graph import ModuleGraph
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo, listed
from hetjax.stages.flat_state import Arrays, flatten_module
from hetjax.stages.stage import Stage
from hetjax.state.module_arrays import find_parts, whole_shapes
from hetjax.state.shard_bounds import devices_by_bounds

Box = tuple[slice, ...]
"""A start and a stop in every dim of an array."""


class WeightSource(Protocol):
    """Arrays of whole modules by path, of which any part can be read."""

    @property
    def name(self) -> str:
        """Name in messages."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it holds."""

    def infos(self, module: str) -> dict[str, TensorInfo]:
        """Return shape and dtype of every array of a module, by path."""

    def read(self, module: str, path: str, box: Box) -> np.ndarray:
        """Return a part of an array, from a start to a stop in every dim."""


class ModuleWeights:
    """The arrays of one module that is in memory, by path."""

    def __init__(self, module: str, built: nnx.Module):
        _, params, buffers = flatten_module(built)
        self.modules = (module,)
        self.name = f"module '{module}' in memory"
        self._arrays = {path: np.asarray(array) for path, array in {**params, **buffers}.items()}

    def infos(self, module: str) -> dict[str, TensorInfo]:
        """Return shape and dtype of every array, by path."""
        return {path: TensorInfo(array.shape, array.dtype) for path, array in self._arrays.items()}

    def read(self, module: str, path: str, box: Box) -> np.ndarray:
        """Return a part of an array."""
        return self._arrays[path][box]


def check_source(graph: ModuleGraph, module: str, source: WeightSource) -> None:
    """Raise ConfigError unless the source holds every weight of a module in its shape; buffers may be missing.

    So may low-rank maps beside frozen weights, which then begin as they are made.
    """
    if module not in source.modules:
        raise ConfigError(
            f"warm_start: {source.name} holds no module '{module}', only {', '.join(source.modules)}; name the "
            "folders by module"
        )
    held = source.infos(module)
    params, buffers = whole_shapes(graph, module)
    frozen = flatten_module(graph.abstract(module))[0].frozen
    wrong = [
        f"{path} has shape {held[path].shape} in the weights, {tuple(aval.shape)} in the model"
        for path, aval in {**params, **buffers}.items()
        if path in held and held[path].shape != tuple(aval.shape)
    ]
    wrong += [
        f"{path} of shape {tuple(params[path].shape)} is only in the model"
        for path in params
        if path not in held and (path in frozen or not frozen)
    ]
    extra = sorted(held.keys() - params.keys() - buffers.keys())
    wrong += [f"{path} of shape {held[path].shape} is only in the weights" for path in extra]
    if wrong:
        raise ConfigError(
            f"warm_start: module '{module}' does not fit {source.name}: {listed(wrong)}; give model.{module} the sizes "
            "that the weights have (hetjax convert writes them into model.yaml), or another folder"
        )


def load_stages(
    graph: ModuleGraph, module: str, stages: list[Stage], source: WeightSource
) -> dict[str, tuple[Arrays, Arrays]]:
    """Return (params, buffers) of a module's stages that this process runs, by stage, in their dtypes and shardings.

    `stages` are all of the module. Buffers that the source lacks are left out. Raises ConfigError as `check_source`.
    """
    check_source(graph, module, source)
    held = source.infos(module)
    found: dict[str, tuple[Arrays, Arrays]] = {stage.name: ({}, {}) for stage in stages if stage.is_local}
    shapes = whole_shapes(graph, module)
    parts = ({stage.name: stage.params for stage in stages}, {stage.name: stage.buffers for stage in stages})
    for kind in (0, 1):
        for path, whole in find_parts(module, shapes[kind], parts[kind]).items():
            if path not in held:
                continue
            starts = {each.stage: each.start for each in whole.slices} if whole.stacked else {}
            for stage, aval in whole.parts.items():
                if stage in found:
                    found[stage][kind][path] = _load(source, module, path, aval, starts.get(stage, 0))
    return found


def _load(source: WeightSource, module: str, path: str, aval: jax.ShapeDtypeStruct, start: int) -> jax.Array:
    """A stage's part of an array, from index `start` of the whole array's leading dim on; each shard is read once."""
    shards: dict[jax.Device, jax.Array] = {}
    for bounds, devices in devices_by_bounds(aval.sharding, aval.shape).items():
        first = (start, *[0] * (len(bounds) - 1))
        box = tuple(slice(low + shift, high + shift) for (low, high), shift in zip(bounds, first, strict=False))
        # A copy in row-major order: a view of a mapped file must not become the memory of a weight.
        part = np.array(source.read(module, path, box), aval.dtype, order="C")
        shards |= {device: jax.device_put(part, device, may_alias=False) for device in devices}
    in_order = [shards[device] for device in aval.sharding.addressable_devices_indices_map(aval.shape)]
    return jax.make_array_from_single_device_arrays(aval.shape, aval.sharding, in_order, dtype=aval.dtype)
