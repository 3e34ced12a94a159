"""Crossings over several processes: every one of them draws the same cases from a seed."""

import random
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.boundary import Boundary, Transport
from hetjax.errors import BoundaryError
from tests.harness.boundary_cases import (
    Crossing,
    any_bits,
    assert_shards_equal,
    draw_crossing,
    on_devices,
)
from tests.harness.processes import run_processes


def flat(devices: list[int], spec: P) -> NamedSharding:
    """`devices` count through those of all processes."""
    grid = np.array([jax.devices()[i] for i in devices])
    return NamedSharding(Mesh(grid, ("x",), axis_types=(AxisType.Auto,)), spec)


def give(boundary: Boundary, value: np.ndarray, side: NamedSharding) -> jax.Array:
    """This process's shards; by `empty` where it has no device of the source."""
    if side == boundary.source and not side.mesh.local_devices:
        return boundary.empty(value.shape, value.dtype)
    return on_devices(value, side)


def assert_boundary_exact(crossing: Crossing, way: str | None) -> None:
    """A process without a device of either side skips it."""
    boundary = Boundary(crossing.source.sharding, crossing.destination.sharding, way=way)
    value, cotangent = (any_bits(crossing.shape, crossing.dtype, seed) for seed in (1, 2))
    if boundary.source.mesh.local_devices or boundary.destination.mesh.local_devices:
        crossed = boundary.forward(give(boundary, value, boundary.source))
        gradient = boundary.backward(on_devices(cotangent, boundary.destination))
        assert_shards_equal(crossed, value, boundary.destination)
        assert_shards_equal(gradient, cotangent, boundary.source)


def assert_transport_exact(crossing: Crossing) -> str | None:
    """It takes and gives None where a process has no part; the way that the devices chose."""
    source, destination = crossing.source.sharding, crossing.destination.sharding
    transport = Transport(source, destination, crossing.shape, crossing.dtype).compile()
    here, there = bool(source.mesh.local_devices), bool(destination.mesh.local_devices)
    assert transport.is_local == (here or there)
    value = any_bits(crossing.shape, crossing.dtype, 3)
    crossed = transport(on_devices(value, source) if here else None)
    assert (crossed is not None) == there
    if there:
        assert_shards_equal(crossed, value, destination)
    return transport.way


def kind(crossing: Crossing) -> str:
    """How the sides lie in the processes."""
    here, there = (
        {device.process_index for device in side.sharding.mesh.devices.flat}
        for side in (crossing.source, crossing.destination)
    )
    if not here & there:
        return "other processes"
    if len(here | there) == 1:
        return "one process"
    return "several processes, all shared" if here == there else "several processes, some shared"


def check_random_crossings(seed: int, examples: int) -> tuple[Counter, Counter]:
    choose = random.Random(seed).choice
    kinds, ways = Counter(), Counter()
    for _ in range(examples):
        crossing = draw_crossing(choose, device_count=jax.device_count())
        kinds[kind(crossing)] += 1
        assert_boundary_exact(crossing, choose([None, "exchange"]))
        ways[assert_transport_exact(crossing)] += 1
    return kinds, ways


def check_grad() -> list[float]:
    """Both meshes have a device in every process, so that `jax.grad` runs the same program everywhere."""
    count = jax.device_count()
    boundary = Boundary(flat([*range(0, count, 2)], P("x")), flat([*range(1, count, 2)], P(None, "x")))
    value = np.arange(4.0 * count * count, dtype=np.float32).reshape(2 * count, 2 * count)
    weight = np.float32(1) / (1 + value)
    x, w = on_devices(value, boundary.source), on_devices(weight, boundary.destination)
    loss, gradient = jax.value_and_grad(lambda x: jnp.sum(boundary(x) * w))(x)
    assert_shards_equal(gradient, weight, boundary.source)
    # The gradient of a bare sum is on no mesh: each process made its own.
    loose = jax.grad(lambda x: jnp.sum(boundary(x)))(x)
    assert_shards_equal(loose, np.ones_like(value), boundary.source)
    return [float(loss), float(np.sum(value * weight))]


def check_empty() -> None:
    """Only a process without devices of the source may give nothing."""
    boundary = Boundary(flat([0], P()), flat([jax.device_count() - 1], P()))
    if jax.process_index() == 0:
        with pytest.raises(BoundaryError, match="must give its shards"):
            boundary.empty((2,), jnp.float32)
    else:
        nothing = boundary.empty((2,), jnp.bfloat16)
        assert (nothing.shape, nothing.dtype, nothing.addressable_shards) == ((2,), jnp.bfloat16, [])


def check_refusals() -> None:
    boundary = Boundary(flat([0], P()), flat([jax.device_count() - 1], P()), way="copies")
    with pytest.raises(BoundaryError, match="the devices are in several processes"):
        boundary.forward(give(boundary, np.zeros(2, np.float32), boundary.source))


def check_all(seed: int, examples: int):
    check_empty()
    check_refusals()
    loss, expected = check_grad()
    assert loss == pytest.approx(expected, rel=1e-5)
    return check_random_crossings(seed, examples)


def assert_all_alike(results: list, examples: int) -> None:
    """Every process drew the same cases, and they are of every kind."""
    kinds = results[0][0]
    assert all(result[0] == kinds for result in results)
    assert kinds.total() == examples
    assert {"other processes", "several processes, all shared", "several processes, some shared"} <= set(kinds)
    assert "exchange" in results[0][1]


def test_crossings_over_two_processes_are_exact_in_every_shard():
    assert_all_alike(run_processes(2, check_all, devices=2, seed=2, examples=8), 8)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("processes", "devices"), [(4, 2), pytest.param(3, 2, marks=pytest.mark.exhaustive)])
def test_many_crossings_over_processes_are_exact_in_every_shard(processes, devices):
    results = run_processes(processes, check_all, devices=devices, timeout=1000, optimize=True, seed=1, examples=50)
    assert_all_alike(results, 50)
