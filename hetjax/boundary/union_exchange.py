"""What every exchange by one program over the devices of both meshes has: their mesh, source tiles and blanks."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.compilation.compiled_program import Program
from hetjax.meshes import local_devices

AXIS = "devices"


class UnionExchange:
    """Gives a program over both meshes each device's source tile, and takes the destination tiles out of its result.

    Args:
        source: the source mesh.
        destination: sharding of the tensor that arrives.
        senders, receivers: ids of the devices that hold a tile of the source, and of the destination.
        block: shape of a source tile.
        arriving: shape of the tensor that arrives.
        dtype: dtype of the tensor.

    Attributes:
        program: the program over both meshes, which subclasses make.
    """

    program: Program

    def __init__(
        self,
        source: Mesh,
        destination: NamedSharding,
        senders: Collection[int],
        receivers: Collection[int],
        *,
        block: tuple[int, ...],
        arriving: tuple[int, ...],
        dtype: jnp.dtype,
    ):
        self.dtype = dtype
        devices = {device.id: device for mesh in (source, destination.mesh) for device in mesh.devices.flat}
        self._devices = [devices[number] for number in sorted(devices)]
        self._own = local_devices(self._devices)
        self._output, self._arriving = destination, arriving
        self._senders, self._receivers = set(senders), set(receivers)
        self._block = block
        self._mesh = Mesh(np.array(self._devices), (AXIS,))
        self._union = NamedSharding(self._mesh, PartitionSpec(AXIS))

    @property
    def blank_bytes(self) -> dict[int, int]:
        """Bytes of `blanks` on each device, of all processes."""
        size = math.prod(self._block) * self.dtype.itemsize
        return {device.id: size for device in self._devices if device.id not in self._senders}

    @functools.cached_property
    def blanks(self) -> dict[int, jax.Array]:
        """Zeros by device id where there is no source tile; to be made before a step, as they come from the host."""
        return {
            device.id: _blank(device, self._block, self.dtype) for device in self._own if device.id not in self._senders
        }

    @property
    def _whole(self) -> tuple[int, ...]:
        """All devices' source tiles, one behind the other."""
        return (len(self._devices) * self._block[0], *self._block[1:])

    def _carry(self, x: jax.Array | None, *more: jax.Array) -> jax.Array | None:
        """Run the program on `x` and what else it takes; None where this process has no device of the destination."""
        given = {shard.device.id: shard.data for shard in x.addressable_shards} if x is not None else {}
        blocks = [given[d.id] if d.id in self._senders else self.blanks[d.id] for d in self._own]
        done = self.program(jax.make_array_from_single_device_arrays(self._whole, self._union, blocks), *more)
        arrays = [shard.data for shard in done.addressable_shards if shard.device.id in self._receivers]
        if not arrays:
            return None
        return jax.make_array_from_single_device_arrays(self._arriving, self._output, arrays)


def _blank(device: jax.Device, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Return zeros for the source tile of a device without one; never changed, so all in use share one."""
    blank = _blanks.get((device, shape, dtype))
    if blank is None:
        blank = _blanks[device, shape, dtype] = jax.device_put(np.zeros(shape, dtype), device)
    return blank


# Not beyond the exchanges that use them: they take memory of the devices.
_blanks: weakref.WeakValueDictionary[tuple[jax.Device, tuple[int, ...], jnp.dtype], jax.Array] = (
    weakref.WeakValueDictionary()
)
