"""What a crossing runs: only the collectives that are meant at both ends, and nothing on the host."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.boundary import Boundary, Transport
from hetjax.compilation.hlo import bytes_received, collectives
from hetjax.errors import BoundaryError
from tests.harness.alive import alive
from tests.harness.boundary_cases import assert_shards_equal
from tests.harness.count_waits import count_waits

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
SHAPE = (24, 8)


def side(devices, sizes: tuple[int, ...], spec: P) -> NamedSharding:
    grid = np.array([jax.devices()[i] for i in devices]).reshape(sizes)
    return NamedSharding(Mesh(grid, ("x", "y")[: len(sizes)], axis_types=(AxisType.Auto,) * len(sizes)), spec)


def make_transport(source: NamedSharding, destination: NamedSharding) -> Transport:
    return Transport(source, destination, SHAPE, "float32").compile()


def collectives_of(transport: Transport, name: str) -> set[str]:
    """Collectives in a compiled program; an end that has nothing to do has none."""
    text = transport.programs[name].text if name in transport.programs else ""
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
    "overlapping": (side(range(4), (4,), P("x")), side(range(2, 6), (2, 2), P("x")), set()),
}


@pytest.mark.parametrize("way", ["copies", "exchange"])
def test_pieces_are_handed_on_by_devices_that_received_them(way):
    """Two of eight devices hold a half each, in two pieces, and all are to hold all."""
    source, destination = side([2, 5], (2,), P("x")), side(range(8), (8,), P())
    transport = Transport(source, destination, SHAPE, "float32", way=way).compile()
    assert max(move.relay for move in transport.plan.moves) == 2
    assert [step.name for step in transport.plan.hops] == ["exchange", "relay"]
    value = np.arange(math.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    assert_shards_equal(transport(jax.device_put(value, source)), value, destination)


@pytest.mark.parametrize("name", CROSSINGS)
def test_split_communicates_nothing_and_join_only_gathers_copies(name):
    source, destination, expected = CROSSINGS[name]
    transport = make_transport(source, destination)
    assert transport.way == "copies"
    assert collectives_of(transport, "split") == set()
    assert collectives_of(transport, "join") == expected
    assert bool(transport.plan.bytes_gathered) == ("all-gather" in expected)


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (side(range(4), (4,), P("x")), side(range(4), (4,), P()), {"all-gather"}),
        (side(range(4), (4,), P("x")), side(range(4), (2, 2), P("x")), {"all-gather"}),
        (side(range(4), (4,), P()), side(range(4), (2, 2), P("x", "y")), set()),
    ],
    ids=["split to copies", "to fewer shards", "copies to split"],
)
def test_on_the_same_devices_one_program_gathers_or_slices(source, destination, expected):
    """The last of them stays: each device has its part within what it holds."""
    transport = make_transport(source, destination)
    assert transport.way == "reshard"
    assert collectives_of(transport, "cross") == expected


def test_tiles_in_another_order_are_exchanged_one_by_one():
    transport = make_transport(side(range(4), (2, 2), P(("x", "y"))), side(range(4), (2, 2), P(("y", "x"))))
    assert transport.way == "exchange"
    (swap,) = collectives(transport.programs["cross"].text)
    assert (swap.kind, set(swap.pairs)) == ("collective-permute", {(1, 2), (2, 1)})


def test_a_program_of_the_partitioner_that_sends_more_than_planned_is_not_used(monkeypatch):
    sides = side(range(4), (4,), P("x")), side(range(4), (4,), P())
    monkeypatch.setattr("hetjax.boundary.transport.bytes_received", lambda text: bytes_received(text) + 1)
    transport = make_transport(*sides)
    assert transport.way == "exchange"
    assert bytes_received(transport.programs["cross"].text) == transport.plan.lower_bound


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


WAYS = [(name, way) for name in CROSSINGS for way in ("copies", "exchange")] + [
    ("fan-out", None),
    ("fan-out", "device_put"),
    ("scalar", None),
    ("scalar", "exchange"),
    ("to copies", "reshard"),
    ("renamed", "stay"),
]
OTHERS = {
    "scalar": (side(range(4), (4,), P()), side(range(3, 6), (3,), P())),
    "to copies": (side(range(4), (4,), P("x")), side(range(4), (2, 2), P("y"))),
    "renamed": (side(range(4), (4,), P("x")), side(range(4), (2, 2), P(("x", "y")))),
}


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_the_first_crossing_already_waits_for_nothing_and_touches_no_host_array(name, way, monkeypatch):
    """Neither a read nor a transfer from the host, such as that of zeros to begin with, may fall into a step."""
    source, destination = (CROSSINGS | OTHERS)[name][:2]
    shape = () if name == "scalar" else SHAPE
    transport = Transport(source, destination, shape, "float32", way=way).compile()
    value = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    x = jax.device_put(value, source)
    with count_waits(monkeypatch) as waits, jax.transfer_guard_host_to_device("disallow_explicit"):
        crossed = transport(x)
        assert waits == []
    assert way in (None, transport.way)
    assert_shards_equal(crossed, value, destination)


def test_a_gradient_that_jax_made_elsewhere_is_placed_without_the_host(monkeypatch):
    boundary = Boundary(*CROSSINGS["rows to columns"][:2])
    loose = jnp.ones(SHAPE)
    assert not loose.committed
    boundary.backward(loose)
    with count_waits(monkeypatch) as waits:
        gradient = boundary.backward(loose)
        assert waits == []
    assert_shards_equal(gradient, np.ones(SHAPE, np.float32), boundary.source)


def test_the_count_sees_the_bounce_that_a_plain_device_put_makes(monkeypatch):
    source, destination, _ = CROSSINGS["fan-in to replicas"]
    x = jax.device_put(np.zeros(SHAPE, np.float32), source)
    with count_waits(monkeypatch) as waits, jax.transfer_guard_device_to_host("allow"):
        jax.device_put(x, destination)
        assert "_value" in waits


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("stay", "a device does not hold its part yet"),
        ("reshard", "do not list the same devices in the same order"),
        ("device_put", "a device sends to several, or receives from several"),
        ("by post", "is unknown; the ways are stay, reshard, copies, exchange, device_put, or None"),
    ],
)
def test_a_way_that_the_devices_cannot_go_is_refused_with_the_reason(way, reason):
    with pytest.raises(BoundaryError, match=reason):
        Transport(*CROSSINGS["three to four"][:2], SHAPE, "float32", way=way)


def test_one_transport_compiles_once_and_serves_many_arrays():
    source, destination, _ = CROSSINGS["three to four"]
    transport = make_transport(source, destination)
    before = {name: program.compiled for name, program in transport.programs.items()}
    assert set(before) == {"split", "join"}
    assert transport.compile() is transport
    assert {name: program.compiled for name, program in transport.programs.items()} == before
    for seed in range(2):
        value = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
        np.testing.assert_array_equal(transport(jax.device_put(value, source)), value)


@pytest.mark.parametrize(
    ("way", "shape", "source", "destination"),
    [
        # Of shapes that no other test has: blanks of one shape are shared.
        ("exchange", (36, 20), side(range(2), (2,), P("x")), side(range(2, 5), (3,), P("x"))),
        ("copies", (25, 7), side([0], (1,), P()), side(range(4, 7), (3,), P())),
    ],
)
def test_blanks_take_what_a_transport_says_on_each_device(way, shape, source, destination):
    transport = Transport(source, destination, shape, "float32", way=way)
    transport.compile_programs()
    before = [alive(device) for device in jax.devices()]
    transport.compile()
    made = {device.id: alive(device) - held for device, held in zip(jax.devices(), before, strict=True)}
    assert {device: size for device, size in made.items() if size} == transport.blank_bytes
    assert transport.blank_bytes
