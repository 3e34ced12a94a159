"""What a crossing runs: only the collectives that are meant at both ends, and nothing on the host."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.boundary import Transport
from tests.waiting import count_waits

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
SHAPE = (24, 8)


def side(devices, sizes: tuple[int, ...], spec: P) -> NamedSharding:
    grid = np.array([jax.devices()[i] for i in devices]).reshape(sizes)
    return NamedSharding(Mesh(grid, ("x", "y")[: len(sizes)], axis_types=(AxisType.Auto,) * len(sizes)), spec)


def make_transport(source: NamedSharding, destination: NamedSharding) -> Transport:
    return Transport(source, destination, SHAPE, "float32").compile()


def collectives_of(program) -> set[str]:
    """Collectives in a compiled program; one that is plain Python has none."""
    text = program.as_text() if hasattr(program, "as_text") else ""
    return {name for name in COLLECTIVES if re.search(rf"\b{name}(-start)?\(", text)}


CROSSINGS = {
    # name: (source, destination, collectives of the join)
    "fan-in to replicas": (side(range(4), (4,), P("x")), side(range(4, 8), (2, 2), P("x")), {"all-gather"}),
    "replicas to replicas": (side(range(4), (2, 2), P("x")), side(range(4, 8), (2, 2), P("x")), {"all-gather"}),
    "split to copies": (side(range(4), (4,), P("x")), side(range(4, 8), (4,), P()), {"all-gather"}),
    "fan-out": (side(range(4), (2, 2), P("x")), side(range(4, 8), (4,), P("x")), set()),
    "rows to columns": (side(range(4), (4,), P("x")), side(range(4, 8), (4,), P(None, "x")), set()),
    "three to four": (side(range(3), (3,), P("x")), side(range(4, 8), (4,), P("x")), set()),
    "copies to split": (side(range(4), (4,), P()), side(range(4, 8), (2, 2), P("x", "y")), set()),
    "overlapping": (side(range(4), (4,), P("x")), side(range(2, 6), (2, 2), P("x")), {"all-gather"}),
}


@pytest.mark.parametrize("name", CROSSINGS)
def test_split_communicates_nothing_and_join_only_gathers_copies(name):
    source, destination, expected = CROSSINGS[name]
    transport = make_transport(source, destination)
    assert not transport.plan.in_one_program
    assert collectives_of(transport._split) == set()
    assert collectives_of(transport._join) == expected
    assert bool(transport.plan.bytes_gathered) == ("all-gather" in expected)


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (side(range(4), (4,), P("x")), side(range(4), (4,), P()), {"all-gather"}),
        (side(range(4), (4,), P("x")), side(range(4), (2, 2), P("x")), {"all-gather"}),
        (side(range(4), (4,), P()), side(range(4), (2, 2), P("x", "y")), set()),
        (side(range(4), (2, 2), P(("x", "y"))), side(range(4), (2, 2), P(("y", "x"))), {"collective-permute"}),
    ],
    ids=["split to copies", "to fewer shards", "copies to split", "tiles in another order"],
)
def test_on_the_same_devices_one_program_gathers_or_slices(source, destination, expected):
    transport = make_transport(source, destination)
    assert transport.plan.in_one_program
    assert collectives_of(transport._join) == expected


def test_what_stays_is_not_copied_but_gets_the_sharding_of_the_destination():
    transport = make_transport(side(range(4), (4,), P("x")), side(range(4), (2, 2), P(("x", "y"))))
    x = jax.device_put(np.zeros(SHAPE, np.float32), transport.source)
    crossed = transport(x)
    assert crossed.sharding == transport.destination
    for before, after in zip(x.addressable_shards, crossed.addressable_shards, strict=True):
        assert before.data.unsafe_buffer_pointer() == after.data.unsafe_buffer_pointer()


def test_the_same_sharding_on_both_sides_gives_the_very_same_array():
    transport = make_transport(side(range(4), (4,), P("x")), side(range(4), (4,), P("x")))
    x = jax.device_put(np.zeros(SHAPE, np.float32), transport.source)
    assert transport(x) is x


@pytest.mark.parametrize("name", CROSSINGS)
def test_no_crossing_reads_the_array_on_the_host(name, monkeypatch):
    source, destination, _ = CROSSINGS[name]
    transport = make_transport(source, destination)
    value = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    x = jax.device_put(value, source)
    with count_waits(monkeypatch) as waits:
        crossed = transport(x)
        assert waits == []
    np.testing.assert_array_equal(crossed, value)


def test_the_count_sees_the_bounce_that_a_plain_device_put_makes(monkeypatch):
    source, destination, _ = CROSSINGS["fan-in to replicas"]
    x = jax.device_put(np.zeros(SHAPE, np.float32), source)
    with count_waits(monkeypatch) as waits, jax.transfer_guard_device_to_host("allow"):
        jax.device_put(x, destination)
        assert "_value" in waits


def test_every_device_of_the_destination_holds_its_own_part():
    """Read shard by shard: a gathered copy on one device alone would not show in the whole array."""
    source, destination, _ = CROSSINGS["three to four"]
    value = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    crossed = make_transport(source, destination)(jax.device_put(value, source))
    indices = destination.devices_indices_map(SHAPE)
    assert {shard.device for shard in crossed.addressable_shards} == set(indices)
    for shard in crossed.addressable_shards:
        np.testing.assert_array_equal(shard.data, value[indices[shard.device]])


def test_one_transport_compiles_once_and_serves_many_arrays():
    source, destination, _ = CROSSINGS["three to four"]
    transport = make_transport(source, destination)
    split, join = transport._split, transport._join
    assert transport.compile() is transport
    assert (transport._split, transport._join) == (split, join)
    for seed in range(2):
        value = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        np.testing.assert_array_equal(transport(jax.device_put(value, source)), value)
