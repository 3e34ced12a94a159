import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.boundary import Boundary
from hetjax.errors import BoundaryError


def sharding(devices: list[int], shape: tuple[int, ...], spec: P) -> NamedSharding:
    names = ("x", "y", "z")[: len(shape)]
    grid = np.array([jax.devices()[i] for i in devices]).reshape(shape)
    return NamedSharding(Mesh(grid, names, axis_types=(AxisType.Auto,) * len(shape)), spec)


SIDES = {
    "rows4": lambda d: sharding(d[:4], (4,), P("x")),
    "rows3": lambda d: sharding(d[:3], (3,), P("x")),
    "rows2 twice": lambda d: sharding(d[:4], (2, 2), P("x")),
    "columns4": lambda d: sharding(d[:4], (4,), P(None, "x")),
    "rows2 columns2": lambda d: sharding(d[:4], (2, 2), P("x", "y")),
    "columns then rows": lambda d: sharding(d[:4], (2, 2), P("y", "x")),
    "both on rows": lambda d: sharding(d[:4], (2, 2), P(("y", "x"))),
    "replicated": lambda d: sharding(d[:4], (4,), P()),
    "one": lambda d: sharding(d[:1], (1,), P("x")),
}
PLACES = {
    "disjoint": (range(4), range(4, 8)),
    "same": (range(4), range(4)),
    "permuted": (range(4), [2, 0, 3, 1]),
    "overlapping": (range(4), range(2, 6)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("source", "destination"), itertools.product(SIDES, SIDES))
def test_values_and_gradients_cross_bit_for_bit(place, source, destination):
    here, there = (list(devices) for devices in PLACES[place])
    boundary = Boundary(SIDES[source](here), SIDES[destination](there))
    value = np.random.default_rng(0).normal(size=(12, 24)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(12, 24)).astype(np.float32)
    x = jax.device_put(value, boundary.source)
    w = jax.device_put(weight, boundary.destination)

    crossed = boundary(x)
    gradient = jax.grad(lambda x: jnp.sum(boundary(x) * w))(x)

    assert crossed.sharding.is_equivalent_to(boundary.destination, 2)
    assert gradient.sharding.is_equivalent_to(boundary.source, 2)
    np.testing.assert_array_equal(crossed, value)
    np.testing.assert_array_equal(gradient, weight)


def test_scalar_and_integer_tensors_cross():
    boundary = Boundary(sharding([0, 1], (2,), P()), sharding([2, 3, 4], (3,), P()))
    assert boundary(jax.device_put(np.float32(3.5), boundary.source)) == 3.5
    assert boundary(jax.device_put(np.int32(7), boundary.source)).dtype == jnp.int32


def test_call_inside_jit_is_refused_with_the_way_out():
    boundary = Boundary(SIDES["rows4"](range(4)), SIDES["rows4"](range(4, 8)))
    with pytest.raises(BoundaryError, match="between jitted programs"):
        jax.jit(boundary)(np.zeros((4, 4), np.float32))


def test_array_elsewhere_and_shape_that_does_not_divide_are_refused():
    boundary = Boundary(SIDES["rows4"](range(4)), SIDES["rows3"](range(4, 8)))
    with pytest.raises(BoundaryError, match="pin the program's output"):
        boundary(jax.device_put(np.zeros((12, 2)), jax.devices()[7]))
    with pytest.raises(BoundaryError, match=r"dim 0 of shape \(4, 2\) is 4, not divisible into the 3 tiles"):
        boundary.plan((4, 2), jnp.float32)
