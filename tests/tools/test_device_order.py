"""The device order that moves the least, against every other order and against plain facts."""

import dataclasses
import itertools
import math
import time

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.boundary import Tiling, Transport, make_plan
from hetjax.tools.device_order import best_device_order
from tests.harness.boundary_cases import assert_shards_equal, on_devices

MESHES = {1: [(1,)], 2: [(2,)], 3: [(3,)], 4: [(4,), (2, 2)], 5: [(5,)]}


def tiling(devices, sizes: tuple[int, ...], *spec: tuple[int, ...]) -> Tiling:
    axes = tuple((str(axis), size) for axis, size in enumerate(sizes))
    return Tiling(axes=axes, devices=tuple(devices), spec=tuple(tuple(map(str, names)) for names in spec))


@st.composite
def tilings(draw, numbers) -> Tiling:
    """Up to five of the numbered devices, in any order, split over two dims in any way."""
    count = draw(st.sampled_from(sorted(MESHES)))
    sizes = draw(st.sampled_from(MESHES[count]))
    spec: list[list[int]] = [[], []]
    for axis in draw(st.permutations(range(len(sizes)))):
        dim = draw(st.sampled_from([0, 1, None]))
        if dim is not None:
            spec[dim].append(axis)
    return tiling(draw(st.permutations(numbers))[:count], sizes, *map(tuple, spec))


def bytes_moved(shape, source: Tiling, destination: Tiling, order) -> int:
    return make_plan(shape, 4, source, dataclasses.replace(destination, devices=tuple(order))).bytes_moved


@settings(max_examples=80, deadline=None, derandomize=True)
@given(tilings(range(5)), tilings(range(1, 7)))
def test_no_order_of_the_devices_moves_less(source, destination):
    """Also where only some devices are shared. 60 divides by all that five devices can make."""
    shape = (60, 60)
    order = best_device_order(shape, 4, source, destination)
    assert sorted(order) == sorted(destination.devices)
    least = min(bytes_moved(shape, source, destination, other) for other in itertools.permutations(order))
    assert bytes_moved(shape, source, destination, order) == least
    if bytes_moved(shape, source, destination, destination.devices) == least:
        assert order == destination.devices, "an order that is as good stays as given"


def test_a_permuted_mesh_returns_to_where_its_tiles_are():
    source = tiling(range(4), (4,), (0,), ())
    shuffled = tiling([2, 0, 3, 1], (4,), (0,), ())
    assert best_device_order((8, 8), 4, source, shuffled) == (0, 1, 2, 3)


def test_rows_that_become_half_as_many_twice_meet_their_halves():
    """Four quarters into two halves, twice each: along the outer axis devices 0-1 and 2-3 keep what they hold."""
    source = tiling(range(4), (4,), (0,), ())
    across = tiling(range(4), (2, 2), (1,), ())
    order = best_device_order((8, 8), 4, source, across)
    before, after = (bytes_moved((8, 8), source, across, devices) for devices in (range(4), order))
    assert (before, after) == (6 * 64, 4 * 64)


def test_on_disjoint_devices_the_order_stays():
    destination = tiling([7, 5, 6, 4], (4,), (0,), ())
    assert best_device_order((8, 8), 4, tiling(range(4), (4,), (0,), ()), destination) == (7, 5, 6, 4)


def test_an_array_crosses_to_the_mesh_in_its_new_order():
    """The stages of a run: the mesh with devices in that order holds the tiles that the plan says."""
    devices = np.array(jax.devices())

    def side(numbers, spec: P) -> NamedSharding:
        grid = devices[list(numbers)].reshape(2, 2)
        return NamedSharding(Mesh(grid, ("x", "y"), axis_types=(AxisType.Auto,) * 2), spec)

    source, given_order = side([0, 1, 2, 3], P("x", "y")), [3, 2, 1, 0]
    order = best_device_order((8, 4), 4, tiling(range(4), (2, 2), (0,), (1,)), tiling(given_order, (2, 2), (0,), (1,)))
    transport = Transport(source, side(order, P("x", "y")), (8, 4), "float32").compile()
    assert transport.way == "stay"
    value = np.arange(32, dtype=np.float32).reshape(8, 4)
    assert_shards_equal(transport(on_devices(value, source)), value, transport.destination)


def test_a_thousand_devices_are_ordered_quickly():
    """A fifth of a second of computing as measured, however busy the machine."""
    source = tiling(range(1024), (128, 8), (0,), (1,))
    destination = tiling(range(1024), (32, 4, 8), (1,), (0, 2))
    start = time.thread_time()
    order = best_device_order((1024, 1024), 2, source, destination)
    assert time.thread_time() - start < 5
    moved = [
        make_plan((1024, 1024), 2, source, dataclasses.replace(destination, devices=devices)).bytes_moved
        for devices in (destination.devices, order)
    ]
    assert moved[1] < moved[0] <= math.prod((1024, 1024)) * 2
