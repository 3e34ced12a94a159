"""Run a function on each device for its own part, where the partitioner would gather what it sorts or transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from hetjax.models.dims import Dims
from hetjax.models.parallel.layout_in_force import splits_in_force

Function = TypeVar("Function", bound=Callable[..., Array])


def per_device(dims: Dims, function: Function) -> Function:
    """Run a function on each device's part of arrays that lead with `dims`, all of which it treats alike.

    All arrays, and the result, lead with these dims. Without a layout in force it is the function itself.
    """
    splits = splits_in_force()
    if splits is None:
        return function
    spec = PartitionSpec(*(splits.axes_of(dim) or None for dim in dims))
    return jax.shard_map(function, mesh=splits.mesh, in_specs=spec, out_specs=spec, check_vma=False)
