"""The boundary as a differentiable function."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.boundary.plan import BoundaryPlan, make_plan
from hetjax.boundary.tiling import tiling_of
from hetjax.boundary.transport import Transport
from hetjax.errors import BoundaryError


class Boundary:
    """Converts a tensor from one sharding to another, on shared or separate devices, both ways.

    Call it eagerly, also under `jax.grad`: the tensor arrives with `destination`'s sharding and its
    gradient returns with `source`'s. It lives between jitted programs, not inside one.

    Like JAX itself it takes an uncommitted array, such as the gradient of an eager `jnp.sum`, from wherever it is.

    Raises BoundaryError when a side is no NamedSharding or does not divide the shape, when the array is
    committed elsewhere than `source`, or when it is called inside `jax.jit`.
    """

    def __init__(self, source: NamedSharding, destination: NamedSharding):
        for side, sharding in (("source", source), ("destination", destination)):
            if not isinstance(sharding, NamedSharding):
                raise BoundaryError(
                    f"boundary {side} is a {type(sharding).__name__}; give a jax.sharding.NamedSharding, "
                    "for one device too: a mesh of one"
                )
        self.source, self.destination = source, destination

        @jax.custom_vjp
        def cross(x: jax.Array) -> jax.Array:
            return self.forward(x)

        cross.defvjp(lambda x: (self.forward(x), None), lambda _, gradient: (self.backward(gradient),))
        self._cross = cross

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._cross(x)

    def plan(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> BoundaryPlan:
        """The forward plan for a tensor of this shape and dtype, with the bytes it moves."""
        ndim = len(shape)
        itemsize = jax.numpy.dtype(dtype).itemsize
        return make_plan(tuple(shape), itemsize, tiling_of(self.source, ndim), tiling_of(self.destination, ndim))

    def forward(self, x: jax.Array) -> jax.Array:
        """Carry an activation from source to destination."""
        return _transport(self.source, self.destination, *_signature(x))(_on(x, self.source, "activation"))

    def backward(self, gradient: jax.Array) -> jax.Array:
        """Carry a gradient from destination to source."""
        return _transport(self.destination, self.source, *_signature(gradient))(
            _on(gradient, self.destination, "gradient")
        )


@functools.lru_cache(maxsize=1024)
def _transport(source: NamedSharding, destination: NamedSharding, shape: tuple[int, ...], dtype: str) -> Transport:
    return Transport(source, destination, shape, dtype).compile()


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
            return _transport(x.sharding, sharding, *_signature(x))(x)
        if not x.committed:
            (device,) = x.devices()
            alone = NamedSharding(Mesh(np.array([device]), ("alone",)), PartitionSpec())
            return _transport(alone, sharding, *_signature(x))(jax.device_put(x, alone))
        raise BoundaryError(
            f"the {what} of shape {x.shape} is on {x.sharding}, but this side of the boundary is {sharding}; "
            "pin the program's output with out_shardings"
        )
    return x
