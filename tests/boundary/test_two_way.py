"""Both ways over a boundary in one object."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.boundary import TwoWayTransport
from hetjax.errors import BoundaryError
from tests.harness.boundary_cases import assert_shards_equal

SHAPE = (24, 8)
VALUE = np.arange(24 * 8, dtype=np.float32).reshape(SHAPE)


def side(devices, spec: P) -> NamedSharding:
    grid = np.array([jax.devices()[i] for i in devices])
    return NamedSharding(Mesh(grid, ("x",), axis_types=(AxisType.Auto,)), spec)


SOURCE, DESTINATION = side(range(4), P("x")), side(range(4, 7), P())


def test_the_gradient_goes_back_to_where_the_tensor_came_from():
    both = TwoWayTransport(SOURCE, DESTINATION, SHAPE, "float32").compile()
    assert both.arriving == jax.ShapeDtypeStruct(SHAPE, np.float32, sharding=DESTINATION)
    crossed = both.forward(jax.device_put(VALUE, SOURCE))
    assert_shards_equal(crossed, VALUE, DESTINATION)
    assert_shards_equal(both.backward(crossed), VALUE, SOURCE)


def test_without_a_gradient_there_is_no_way_back():
    assert TwoWayTransport(SOURCE, DESTINATION, SHAPE, "float32", gradient=False).compile().backward is None


def test_a_way_that_the_devices_allow_forward_alone_is_refused_when_a_gradient_comes():
    both = TwoWayTransport(side(range(4), P()), side(range(2), P()), SHAPE, "float32", way="stay")
    assert both.forward.compile().way == "stay"
    with pytest.raises(BoundaryError, match="a device does not hold its part yet"):
        _ = both.backward


@pytest.mark.parametrize("way", ["copies", "exchange"])
def test_its_programs_compile_without_an_array_on_any_device(way):
    """As for devices that are only described; `compile` adds the zeros that stand for missing tiles."""
    held = jax.live_arrays()  # so that no new array gets the id of one that is gone
    before = set(map(id, held))
    transport = TwoWayTransport(side(range(2), P("x")), side([7], P()), SHAPE, "float32", way=way).forward
    transport.compile_programs()
    assert {"exchange": {"cross"}}.get(way, {"join"}) <= set(transport.programs)
    assert {id(array) for array in jax.live_arrays()} <= before
