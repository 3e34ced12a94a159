"""Shapes of a module's arrays as they lie on a mesh."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import PyTree

from hetjax.models.dims import Dims
from hetjax.stages.flat_state import Shapes, Skeleton


class SpecOf(Protocol):
    """Returns the partition of a weight by its dim names, such as `Layout.weight_spec`."""

    def __call__(self, dims: Dims, shape: tuple[int, ...], *, name: str) -> PartitionSpec:
        """Return the partition; `name` is what messages call the weight. Raises PlacementError."""


def placed_shapes(
    shapes: Shapes, skeleton: Skeleton, spec_of: SpecOf, mesh: Mesh, module: str, dtype: DTypeLike | None
) -> Shapes:
    """Return shapes of a module's arrays on a mesh, split as `spec_of` says of their dims, floats in another dtype.

    With None each keeps its dtype. Raises PlacementError, which names the module.
    """
    placed = {}
    for path, aval in shapes.items():
        dims = skeleton.dims.get(path, (None,) * len(aval.shape))
        spec = spec_of(dims, aval.shape, name=f"module '{module}': weight {path} of shape {aval.shape}")
        shape = jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=NamedSharding(mesh, spec))
        placed[path] = cast_shape(shape, dtype)
    return placed


def shardings_of(shapes: PyTree[jax.ShapeDtypeStruct]) -> PyTree[NamedSharding]:
    """Return the sharding of each shape, in the same tree: dicts by path or port, or an optimizer's state."""
    return jax.tree.map(lambda aval: aval.sharding, shapes)


def bytes_per_device(shapes: Iterable[jax.ShapeDtypeStruct]) -> int:
    """Return the bytes that arrays of these shapes and shardings take on each device."""
    return sum(math.prod(aval.sharding.shard_shape(aval.shape)) * aval.dtype.itemsize for aval in shapes)


def cast_shape(shape: jax.ShapeDtypeStruct, dtype: DTypeLike | None) -> jax.ShapeDtypeStruct:
    """Return the shape in another dtype, if that is given and the shape's is a floating one."""
    if dtype is None or not jnp.issubdtype(shape.dtype, jnp.floating):
        return shape
    return jax.ShapeDtypeStruct(shape.shape, dtype, sharding=shape.sharding)
