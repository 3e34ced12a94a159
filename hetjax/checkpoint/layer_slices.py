"""Writes and reads stacked arrays whose stages cannot be the shards of one `jax.Array`.

These are arrays of a module with stages of unlike length, or with several stages a device. On the disk they are whole
arrays like any other. They are written slice by slice, in blocks of layers whose number divides every slice, so that
no two processes write one block; and read slice by slice.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tensorstore

from hetjax.meshes import local_devices
from hetjax.state.shard_bounds import Bounds, devices_by_bounds
from hetjax.state.whole_array import LayerSlice, LayerSlices, WholeArray


class _Shard(NamedTuple):
    """The part of a shard's interface that Orbax reads."""

    index: tuple[slice, ...]
    data: jax.Array
    replica_id: int


class HeldSlices:
    """A stand-in for the whole array which Orbax takes as it is; its shards are blocks of this process's slices."""

    def __init__(self, slices: LayerSlices):
        self._slices, self._first = slices, next(iter(slices.held.values()), None)
        self.shape, self.dtype = slices.shape, slices.dtype

    def __getattr__(self, name: str) -> object:
        return getattr(self._first, name)

    @property
    def addressable_shards(self) -> list[_Shard]:
        """The blocks of layers on this process's devices, with their place in the whole array."""
        block = self._layers_in_block()
        return [
            _Shard(
                (slice(first + start, first + start + block), *shard.index[1:]),
                shard.data if block == len(shard.data) else shard.data[start : start + block],
                shard.replica_id,
            )
            for stage, array in self._slices.held.items()
            for shard in array.addressable_shards
            for first in [self._slices.slice_of(stage).start + (shard.index[0].start or 0)]
            for start in range(0, len(shard.data), block)
        ]

    def _layers_in_block(self) -> int:
        """The most layers of a block that divide the shards of every slice."""
        return math.gcd(
            *(each.sharding.shard_shape((each.stop - each.start, *self.shape[1:]))[0] for each in self._slices.slices)
        )


def read_slices(folder: Path, name: str, whole: WholeArray) -> LayerSlices:
    """Read this process's slices of an array that is called `name` in an item that Orbax wrote."""
    return LayerSlices(whole.shape, whole.dtype, whole.slices, asyncio.run(_read_slices(folder, name, whole)))


async def _read_slices(folder: Path, name: str, whole: WholeArray) -> dict[str, jax.Array]:
    store = await tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": f"file://{folder}", "path": f"{name}/"},
            "open": True,
        }
    )
    local = [each for each in whole.slices if local_devices(each.sharding.device_set)]
    return {each.stage: await _read_slice(store, each, whole.shape, whole.dtype) for each in local}


async def _read_slice(
    store: tensorstore.TensorStore, layers: LayerSlice, shape: tuple[int, ...], dtype: np.dtype
) -> jax.Array:
    """Each part once, however many devices have it."""
    part = (layers.stop - layers.start, *shape[1:])
    devices_of = devices_by_bounds(layers.sharding, part)
    parts = await asyncio.gather(*(_read_part(store, layers.start, bounds, dtype) for bounds in devices_of))
    shards = [
        jax.device_put(data, device)
        for data, devices in zip(parts, devices_of.values(), strict=True)
        for device in devices
    ]
    return jax.make_array_from_single_device_arrays(part, layers.sharding, shards)


async def _read_part(store: tensorstore.TensorStore, first: int, bounds: Bounds, dtype: np.dtype) -> np.ndarray:
    """A part of a slice whose first layer is layer `first` of the whole array."""
    (start, stop), *rest = bounds
    index = (slice(first + start, first + stop), *(slice(*pair) for pair in rest))
    return np.asarray(await store[index].read(), dtype)
