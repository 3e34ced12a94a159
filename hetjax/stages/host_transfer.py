"""Moves arrays between host memory and the devices, in one process or in many."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from hetjax.boundary import Transport
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import Stage

StageKind: TypeAlias = Literal["params", "trained", "buffers"]
"""Arrays of a stage, as its attribute of that name lists them."""


def to_devices(array: ArrayLike, sharding: NamedSharding) -> jax.Array:
    """Return an array of the host, of which it has all or the rows that its devices need, on the devices of a sharding.

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
    """Return the sharding of a copy in every process that has one of these devices, on the first of its own."""
    firsts = {device.process_index: device for device in reversed(devices)}
    return NamedSharding(Mesh(np.array([firsts[process] for process in sorted(firsts)]), ("process",)), PartitionSpec())


class ToEveryProcess:
    """Carries an array to every process that has one of `devices`, each of which calls it.

    It is gathered on its own mesh first, so that what crosses is one piece, which the processes hand on to each other:
    twice as many have it in each round.

    Args:
        source: sharding of the array.
        shape, dtype: of the array.
        devices: devices of all processes that get it.
    """

    def __init__(
        self, source: NamedSharding, shape: tuple[int, ...], dtype: jax.typing.DTypeLike, devices: Sequence[jax.Device]
    ):
        whole = NamedSharding(source.mesh, PartitionSpec())
        self._gather = Transport(source, whole, shape, dtype)
        everywhere = every_process(devices)
        self._hand_out = Transport(whole, everywhere, shape, dtype) if everywhere.mesh.size > 1 else None

    def compile(self) -> ToEveryProcess:
        """Compile what this process runs of it; harmless to call twice."""
        self._gather.compile()
        if self._hand_out is not None:
            self._hand_out.compile()
        return self

    def __call__(self, x: jax.Array | None) -> jax.Array:
        """Dispatch: the copy of this process. `x` is None where this process holds no part of the array."""
        gathered = None if x is None else self._gather(x)
        return gathered if self._hand_out is None else self._hand_out(gathered)


def to_every_process(
    stages: Sequence[Stage], arrays: Mapping[str, Arrays], devices: Sequence[jax.Device], *, kind: StageKind = "params"
) -> dict[str, Arrays]:
    """Return a copy of each stage's arrays of a kind in every process that has one of `devices`, by stage and path.

    Every process calls it at the same place of its program, with stages that it may or may not run.

    Args:
        stages: the stages.
        arrays: those of the local stages, or arrays sharded like them.
        devices: devices of all processes that get a copy.
        kind: weights, those of them that are updated, or the state that does not train.
    """
    if every_process(devices).mesh.size == 1:
        return {name: dict(held) for name, held in arrays.items()}
    copied: dict[str, Arrays] = {}
    for stage in stages:
        held = arrays.get(stage.name, {})
        copied[stage.name] = {
            path: _to_every_process(aval.sharding, aval.shape, str(aval.dtype), tuple(devices))(held.get(path))
            for path, aval in getattr(stage, kind).items()
        }
    return copied


@functools.lru_cache(maxsize=1024)
def _to_every_process(
    source: NamedSharding, shape: tuple[int, ...], dtype: str, devices: tuple[jax.Device, ...]
) -> ToEveryProcess:
    return ToEveryProcess(source, shape, dtype, devices).compile()
