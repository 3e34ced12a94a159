"""Converts a tensor between shardings as a differentiable function, outside of `jax.jit`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jax.sharding import NamedSharding

from hetjax.boundary.plan import BoundaryPlan, make_plan
from hetjax.boundary.tiling import tiling_of
from hetjax.boundary.two_way import TwoWayTransport
from hetjax.boundary.ways import Way
from hetjax.errors import BoundaryError
from hetjax.meshes import local_devices


class Boundary:
    """Converts a tensor from one sharding to another, on shared or separate devices, both ways.

    Call it eagerly, also under `jax.grad`: the tensor arrives with `destination`'s sharding and its
    gradient returns with `source`'s. It lives between jitted programs, not inside one.

    Like JAX itself it takes an uncommitted array, such as the gradient of an eager `jnp.sum`, from wherever it is.

    Over many processes each one with a device of either side calls it at the same place of its program, and
    gives and gets arrays of which it holds its own shards. One that has no device of the source gives `empty`.

    Args:
        source, destination: shardings.
        way: how to carry it (`hetjax.boundary.ways`); None lets the devices decide.

    Raises BoundaryError when a side is no NamedSharding or does not divide the shape, when the array is
    committed elsewhere than `source`, or when it is called inside `jax.jit`.
    """

    def __init__(self, source: NamedSharding, destination: NamedSharding, *, way: Way | None = None):
        for side, sharding in (("source", source), ("destination", destination)):
            if not isinstance(sharding, NamedSharding):
                raise BoundaryError(
                    f"boundary {side} is a {type(sharding).__name__}; give a jax.sharding.NamedSharding, "
                    "for one device too: a mesh of one"
                )
        self.source, self.destination, self.way = source, destination, way

        @jax.custom_vjp
        def cross(x: jax.Array) -> jax.Array:
            return self.forward(x)

        cross.defvjp(lambda x: (self.forward(x), None), lambda _, gradient: (self.backward(gradient),))
        self._cross = cross

    def __call__(self, x: jax.Array) -> jax.Array:
        """Carry `x` from source to destination; differentiable."""
        return self._cross(x)

    def plan(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> BoundaryPlan:
        """Return the forward plan for a tensor of this shape and dtype, with the bytes it moves."""
        ndim = len(shape)
        itemsize = jax.numpy.dtype(dtype).itemsize
        return make_plan(tuple(shape), itemsize, tiling_of(self.source, ndim), tiling_of(self.destination, ndim))

    def forward(self, x: jax.Array) -> jax.Array:
        """Carry an activation from source to destination."""
        x = _on(x, self.source, "activation")
        transport = self._transports(x).forward
        arrived = transport(x if x.addressable_shards else None)
        return _empty(x.shape, self.destination, x.dtype) if arrived is None else arrived

    def backward(self, gradient: jax.Array) -> jax.Array:
        """Carry a gradient from destination to source."""
        gradient = _on(gradient, self.destination, "gradient")
        transport = self._transports(gradient).backward
        arrived = transport(gradient if gradient.addressable_shards else None)
        return _empty(gradient.shape, self.source, gradient.dtype) if arrived is None else arrived

    def _transports(self, x: jax.Array) -> TwoWayTransport:
        return _transports(self.source, self.destination, *_signature(x), self.way)

    def empty(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
        """Return what a process without a device of the source gives to `forward`: an array without a shard."""
        return _empty(shape, self.source, jax.numpy.dtype(dtype))


def _empty(shape: tuple[int, ...], sharding: NamedSharding, dtype: jax.numpy.dtype) -> jax.Array:
    if local_devices(sharding.mesh.devices.flat):
        raise BoundaryError(f"this process has devices of {sharding}, so it must give its shards of the array")
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, [], dtype=dtype)


@functools.lru_cache(maxsize=1024)
def _transports(
    source: NamedSharding, destination: NamedSharding, shape: tuple[int, ...], dtype: str, way: Way | None = None
) -> TwoWayTransport:
    """Each way compiles at its first call."""
    return TwoWayTransport(source, destination, shape, dtype, way=way)


@functools.lru_cache(maxsize=1024)
def _placing(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """Return a function that places an uncommitted array, which every process has for itself: each device its part."""
    return jax.jit(lambda x: x, in_shardings=sharding, out_shardings=sharding)


def _signature(x: jax.Array) -> tuple[tuple[int, ...], str]:
    return tuple(x.shape), str(x.dtype)


def _on(x: jax.Array, sharding: NamedSharding, what: str) -> jax.Array:
    if isinstance(x, jax.core.Tracer):
        raise BoundaryError(
            "a boundary was called inside jax.jit, where no array can change meshes; call it between jitted programs"
        )
    if not isinstance(x, jax.Array):
        raise BoundaryError(f"a boundary takes a jax.Array, not {type(x).__name__}; place it with jax.device_put first")
    if not x.sharding.is_equivalent_to(sharding, x.ndim):
        # A program's gradient need not come out as pinned; on the same devices a reshard is free of surprises.
        if set(x.sharding.device_set) == set(sharding.device_set) and isinstance(x.sharding, NamedSharding):
            return _transports(x.sharding, sharding, *_signature(x)).forward(x)
        if not x.committed:
            return _placing(sharding)(x)
        raise BoundaryError(
            f"the {what} of shape {x.shape} is on {x.sharding}, but this side of the boundary is {sharding}; "
            "pin the program's output with out_shardings"
        )
    return x
