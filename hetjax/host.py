"""Between host memory and the devices, in one process or in many."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.boundary import Transport
from hetjax.stage import Stage
from hetjax.weights import Arrays


def to_devices(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that the host has, wholly or the rows that its devices need, on the devices of a sharding.

    A `jax.device_put` onto devices of other processes would make all processes compare their arrays first.
    """
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        # One scalar or a few of them; numpy has no such dtype.
        data = to_devices(np.asarray(jax.random.key_data(array)), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    if isinstance(array, jax.Array):
        array = np.asarray(array)
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array[index]))


def every_process(devices: Sequence[jax.Device]) -> NamedSharding:
    """A copy in every process that has one of these devices, on the first of its own."""
    firsts = {device.process_index: device for device in reversed(devices)}
    return NamedSharding(Mesh(np.array([firsts[process] for process in sorted(firsts)]), ("process",)), PartitionSpec())


def to_every_process(
    stages: Sequence[Stage], arrays: Mapping[str, Arrays], devices: Sequence[jax.Device]
) -> dict[str, Arrays]:
    """The same arrays, laid out as the stages' weights are, for each stage in every process that has one of `devices`.

    `arrays` holds those of the local stages; every process calls it at the same place of its program,
    with stages that it may or may not run.
    """
    target = every_process(devices)
    if target.mesh.size == 1:
        return {name: dict(held) for name, held in arrays.items()}
    copied: dict[str, Arrays] = {}
    for stage in stages:
        held = arrays.get(stage.name, {})
        copied[stage.name] = {
            path: _transport(aval.sharding, target, aval.shape, str(aval.dtype))(held.get(path))
            for path, aval in stage.params.items()
        }
    return copied


@functools.lru_cache(maxsize=1024)
def _transport(source: NamedSharding, target: NamedSharding, shape: tuple[int, ...], dtype: str) -> Transport:
    return Transport(source, target, shape, dtype).compile()
