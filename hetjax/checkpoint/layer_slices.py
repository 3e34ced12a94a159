"""Arrays of a module whose stages cannot be the shards of one `jax.Array`: runs of unlike length, or several a device.

On the disk they are whole arrays like any other. They are written run by run, in blocks of rows whose
number divides every run, so that no two processes write one block; and read run by run.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore

from hetjax.state.module_arrays import Run, Runs, WholeArray


class _Shard(NamedTuple):
    """What Orbax reads of a shard."""

    index: tuple[slice, ...]
    data: jax.Array
    replica_id: int


class HeldRuns:
    """A stand-in for the whole array which Orbax takes as it is; its shards are blocks of this process's runs."""

    def __init__(self, runs: Runs):
        self._runs, self._first = runs, next(iter(runs.held.values()), None)
        self.shape, self.dtype = runs.shape, runs.dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)

    @property
    def addressable_shards(self) -> list[_Shard]:
        runs = self._runs
        block = math.gcd(*(run.sharding.shard_shape((run.stop - run.start, *self.shape[1:]))[0] for run in runs.runs))
        return [
            _Shard(
                (slice(first + start, first + start + block), *shard.index[1:]),
                shard.data if block == len(shard.data) else shard.data[start : start + block],
                shard.replica_id,
            )
            for stage, array in runs.held.items()
            for shard in array.addressable_shards
            for first in [runs.run_of(stage).start + (shard.index[0].start or 0)]
            for start in range(0, len(shard.data), block)
        ]


def read_runs(folder: Path, name: str, whole: WholeArray) -> Runs:
    """This process's runs of an array that is called `name` in an item that Orbax wrote."""
    return Runs(whole.shape, whole.dtype, whole.runs, asyncio.run(_read_runs(folder, name, whole)))


async def _read_runs(folder: Path, name: str, whole: WholeArray) -> dict[str, jax.Array]:
    store = await tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": f"file://{folder}", "path": f"{name}/"},
            "open": True,
        }
    )
    local = [run for run in whole.runs if run.sharding.addressable_devices]
    return {run.stage: await _read_run(store, run, whole.shape, whole.dtype) for run in local}


async def _read_run(store: tensorstore.TensorStore, run: Run, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Each part once, however many devices have it."""
    part = (run.stop - run.start, *shape[1:])
    places: dict[tuple, list[jax.Device]] = {}
    for device, index in run.sharding.addressable_devices_indices_map(part).items():
        bounds = tuple(each.indices(size)[:2] for each, size in zip(index, part, strict=True))
        places.setdefault(bounds, []).append(device)
    parts = await asyncio.gather(*(_read_part(store, run.start, bounds, dtype) for bounds in places))
    shards = [jax.device_put(data, device) for data, who in zip(parts, places.values(), strict=True) for device in who]
    return jax.make_array_from_single_device_arrays(part, run.sharding, shards)


async def _read_part(store: tensorstore.TensorStore, first: int, bounds: tuple, dtype: Any) -> np.ndarray:
    (start, stop), *rest = bounds
    index = (slice(first + start, first + stop), *(slice(*pair) for pair in rest))
    return np.asarray(await store[index].read(), dtype)
