import functools
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
ALL = tuple(itertools.product(PLACES, SIDES, SIDES))


def sample() -> tuple[tuple[str, str, str], ...]:
    """Each side once as source and once as destination in every place: a Latin square, shifted from place to place."""
    names = list(SIDES)
    return tuple(
        (place, source, names[(i + 2 * shift + 1) % len(names)])
        for shift, place in enumerate(PLACES)
        for i, source in enumerate(names)
    )


def test_sample_covers_every_place_with_every_source_and_destination():
    for pair in ((0, 1), (0, 2)):
        assert {tuple(case[i] for i in pair) for case in sample()} == {tuple(case[i] for i in pair) for case in ALL}


@functools.cache
def values() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return tuple(random.normal(size=(12, 24)).astype(np.float32) for _ in range(2))


def assert_crosses_bit_for_bit(place: str, source: str, destination: str) -> None:
    here, there = (list(devices) for devices in PLACES[place])
    boundary = Boundary(SIDES[source](here), SIDES[destination](there))
    value, weight = values()
    x = jax.device_put(value, boundary.source)
    w = jax.device_put(weight, boundary.destination)

    crossed, pull = jax.vjp(boundary, x)
    (gradient,) = pull(w)

    assert crossed.sharding.is_equivalent_to(boundary.destination, 2)
    assert gradient.sharding.is_equivalent_to(boundary.source, 2)
    np.testing.assert_array_equal(crossed, value)
    np.testing.assert_array_equal(gradient, weight)


@pytest.mark.parametrize(("place", "source", "destination"), sample())
def test_values_and_gradients_cross_bit_for_bit(place, source, destination):
    assert_crosses_bit_for_bit(place, source, destination)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "source", "destination"), ALL)
def test_every_pair_of_sides_crosses_bit_for_bit(place, source, destination):
    assert_crosses_bit_for_bit(place, source, destination)


def test_grad_of_an_eager_loss_is_that_of_the_loss_without_a_boundary():
    boundary = Boundary(SIDES["rows4"](range(4)), SIDES["rows2 columns2"](range(4, 8)))
    value, weight = values()
    w = jax.device_put(weight, boundary.destination)
    x = jax.device_put(value, boundary.source)
    gradient = jax.grad(lambda x: jnp.sum((boundary(x) * w) ** 2))(x)
    np.testing.assert_allclose(gradient, 2 * value * weight**2, rtol=1e-6)


@pytest.mark.parametrize("side", ["rows3", "replicated"])
def test_gradient_that_jax_made_on_the_default_device_finds_its_way(side):
    """The gradient of an eager sum is an uncommitted array on the first device, whatever mesh the sum ran on."""
    boundary = Boundary(SIDES[side](range(1, 5)), SIDES["rows4"](range(4, 8)))
    x = jax.device_put(values()[0], boundary.source)
    gradient = jax.grad(lambda x: jnp.sum(boundary(x)))(x)
    assert gradient.sharding.is_equivalent_to(boundary.source, 2)
    np.testing.assert_array_equal(gradient, np.ones((12, 24)))


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


def test_a_host_array_is_refused_with_the_way_out():
    boundary = Boundary(SIDES["rows4"](range(4)), SIDES["rows4"](range(4, 8)))
    with pytest.raises(BoundaryError, match=r"takes a jax.Array, not ndarray; place it with jax.device_put"):
        boundary.forward(np.zeros((4, 4)))
