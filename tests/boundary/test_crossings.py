"""Random crossings on eight devices: exact in every bit, both ways, whichever way they go."""

import typing

import jax
import numpy as np
import pytest
from hypothesis import given, settings

from hetjax.boundary import Boundary, Transport
from hetjax.boundary.ways import Way
from hetjax.errors import BoundaryError
from tests.harness.boundary_cases import Crossing, any_bits, assert_shards_equal, crossings, on_devices

few = settings(max_examples=20, deadline=None, derandomize=True)
many = settings(max_examples=250, deadline=None)


def assert_exact_both_ways(crossing: Crossing, way: str | None) -> None:
    boundary = Boundary(crossing.source.sharding, crossing.destination.sharding, way=way)
    value, cotangent = (any_bits(crossing.shape, crossing.dtype, seed) for seed in (1, 2))
    x, y = on_devices(value, boundary.source), on_devices(cotangent, boundary.destination)
    if crossing.dtype in ("float32", "bfloat16"):
        crossed, pull = jax.vjp(boundary, x)
        (gradient,) = pull(y)
    else:
        crossed, gradient = boundary.forward(x), boundary.backward(y)
    assert_shards_equal(crossed, value, boundary.destination)
    assert_shards_equal(gradient, cotangent, boundary.source)


def assert_every_way_is_exact(crossing: Crossing) -> None:
    sides = crossing.source.sharding, crossing.destination.sharding
    value = any_bits(crossing.shape, crossing.dtype, 3)
    gone = set()
    for way in typing.get_args(Way):
        try:
            transport = Transport(*sides, crossing.shape, crossing.dtype, way=way).compile()
        except BoundaryError:
            continue
        assert_shards_equal(transport(on_devices(value, sides[0])), value, sides[1])
        gone.add(way)
    assert {"exchange", "copies"} <= gone, "in one process these always can"
    assert ("reshard" in gone) == (crossing.source.devices == crossing.destination.devices)


def assert_linear(crossing: Crossing) -> None:
    """Sums of small integers are exact in float64, so the two inner products may not differ at all."""
    boundary = Boundary(crossing.source.sharding, crossing.destination.sharding)
    random = np.random.default_rng(4)
    x, y = (random.integers(-9, 10, size=crossing.shape).astype(np.float32) for _ in range(2))
    crossed, pull = jax.vjp(boundary, on_devices(np.asarray(x), boundary.source))
    (back,) = pull(on_devices(np.asarray(y), boundary.destination))
    assert np.vdot(np.asarray(crossed, np.float64), y) == np.vdot(x, np.asarray(back, np.float64))


@few
@given(crossings())
def test_default_way_is_exact_forward_and_backward(crossing):
    assert_exact_both_ways(crossing, None)


@few
@given(crossings())
def test_exchange_is_exact_forward_and_backward(crossing):
    assert_exact_both_ways(crossing, "exchange")


@few
@given(crossings(places=("disjoint", "same", "permuted", "same")))
def test_every_legal_way_is_exact(crossing):
    assert_every_way_is_exact(crossing)


@settings(few, max_examples=10)
@given(crossings())
def test_backward_is_the_transpose_of_forward(crossing):
    assert_linear(crossing)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", [None, pytest.param("exchange", marks=pytest.mark.exhaustive)])
@many
@given(crossing=crossings())
def test_many_crossings_are_exact_forward_and_backward(way, crossing):
    assert_exact_both_ways(crossing, way)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(1200)
@many
@given(crossings())
def test_many_crossings_are_exact_every_legal_way(crossing):
    assert_every_way_is_exact(crossing)
