import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.boundary import tiling_of
from hetjax.errors import BoundaryError


def make_sharding(devices, sizes: dict[str, int], spec: P) -> NamedSharding:
    grid = np.array([jax.devices()[i] for i in devices]).reshape(tuple(sizes.values()))
    return NamedSharding(Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)), spec)


def tile_as_jax_sees_it(sharding: NamedSharding, shape, counts) -> dict[int, tuple[int, ...]]:
    """Tile coordinates from the index ranges that JAX gives each device."""
    indices = sharding.devices_indices_map(shape)
    return {
        device.id: tuple(
            (part.start or 0) * count // size for part, size, count in zip(index, shape, counts, strict=True)
        )
        for device, index in indices.items()
    }


AXES = ("x", "y", "z")
ENTRIES = [None, *AXES, *itertools.permutations(AXES, 2), *itertools.permutations(AXES, 3)]


@st.composite
def shardings(draw):
    sizes = draw(st.sampled_from([(2, 2, 2), (4, 1, 2), (1, 3, 2), (2, 3, 1), (8, 1, 1)]))
    devices = draw(st.permutations(range(int(np.prod(sizes)))))
    entries, used = [], set()
    for _ in range(draw(st.integers(0, 3))):
        entry = draw(st.sampled_from(ENTRIES))
        axes = {entry} if isinstance(entry, str) else set(entry or ())
        entries.append(None if axes & used else entry)
        used |= axes
    return make_sharding(devices, dict(zip(AXES, sizes, strict=True)), P(*entries))


@settings(max_examples=150, deadline=None)
@given(shardings())
def test_tiles_are_those_that_jax_gives_each_device(sharding):
    tiling = tiling_of(sharding, 3)
    shape = (24, 48, 24)
    assert tiling.tile_of == tile_as_jax_sees_it(sharding, shape, tiling.counts)
    assert sharding.shard_shape(shape) == tuple(s // c for s, c in zip(shape, tiling.counts, strict=True))
    assert tiling.replication == len(tiling.devices) // len(set(tiling.tile_of.values()))


@settings(max_examples=50, deadline=None)
@given(shardings())
def test_a_tiling_returns_as_the_same_partition(sharding):
    again = NamedSharding(sharding.mesh, tiling_of(sharding, 3).partition_spec)
    assert again.is_equivalent_to(sharding, 3)


def test_a_refined_tiling_splits_each_tile_in_place():
    """Each device's finer tile lies inside the tile it held."""
    tiling = tiling_of(make_sharding(range(8), dict(x=2, y=2, z=2), P("y")), 2)
    assert tiling.free_axes == ("x", "z")
    finer = tiling.refined({"x": 0, "z": 1})
    assert finer.counts == (4, 2)
    assert finer.replication == 1
    for device, (row, column) in finer.tile_of.items():
        assert (row // 2, column // 2) == tiling.tile_of[device]


def test_axes_of_size_one_are_not_free():
    tiling = tiling_of(make_sharding(range(2), dict(x=1, y=2), P()), 1)
    assert tiling.free_axes == ("y",)


def test_a_spec_of_more_dims_than_the_tensor_is_refused():
    with pytest.raises(BoundaryError, match="names 2 dims, but the tensor has 1; shorten the spec"):
        tiling_of(make_sharding(range(2), dict(x=2), P(None, "x")), 1)
