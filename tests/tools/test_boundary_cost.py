"""Predicted seconds against figures worked out by hand."""

import dataclasses

import numpy as np
import pytest

from hetjax.boundary import PlanHop, make_plan
from hetjax.meshes import Hardware
from hetjax.tools.boundary_cost import busiest_device_bytes, hop_seconds, plan_seconds
from hetjax.tools.boundary_sides import parse_side
from hetjax.tools.leader_plan import leader_hops, leader_moves

ROUND = Hardware(
    name="round numbers",
    bfloat16_flops=1.0,
    memory_bytes=1.0,
    memory_bandwidth=1.0,
    link_bandwidth=100.0,
    network_bandwidth=10.0,
    devices_per_host=4,
    link_latency=0.5,
    network_latency=2.0,
)
NO_LATENCY = dataclasses.replace(ROUND, link_latency=0.0, network_latency=0.0)


def step(links) -> PlanHop:
    return PlanHop(name="cross", where="source to destination", bytes_per_pair=links)


def both(shape, source, destination):
    """Our hops and those of leader and broadcast, for one byte an element."""
    tilings = [parse_side(text).tiling(shape) for text in (source, destination)]
    return make_plan(shape, 1, *tilings).hops, leader_hops(shape, 1, *tilings)


@pytest.mark.parametrize(
    ("links", "seconds"),
    [
        ({}, 0),
        ({(0, 1): 100}, 0.5 + 100 / 100),
        ({(0, 4): 100}, 2 + 100 / 10),
        # Two messages one behind the other through one port, on whichever end.
        ({(0, 1): 100, (0, 2): 100}, 2 * 0.5 + 200 / 100),
        ({(0, 4): 100, (1, 4): 100}, 2 * 2 + 200 / 10),
        # Sending and receiving at once, and inside and outside the host at once.
        ({(0, 1): 100, (1, 0): 100}, 0.5 + 1),
        ({(0, 1): 100, (0, 4): 10}, max(0.5 + 1, 2 + 1)),
        ({(0, 4): 100, (1, 5): 50}, 2 + 10),
    ],
)
def test_a_step_takes_as_long_as_its_busiest_port(links, seconds):
    assert hop_seconds(step(links), ROUND) == pytest.approx(seconds)


def test_which_links_are_network_depends_on_the_devices_of_a_host():
    links = step({(1, 2): 100})
    assert hop_seconds(links, ROUND) == 0.5 + 1
    assert hop_seconds(links, dataclasses.replace(ROUND, devices_per_host=2)) == 2 + 10


def test_steps_follow_one_another():
    hops = [step({(0, 1): 100}), step({(0, 4): 100})]
    assert plan_seconds(hops, ROUND) == pytest.approx(1.5 + 12)


def test_the_busiest_device_may_be_a_sender_or_a_receiver():
    assert busiest_device_bytes(step({(0, 2): 3, (1, 2): 4})) == 7
    assert busiest_device_bytes(step({(0, 2): 3, (0, 1): 5})) == 8
    assert busiest_device_bytes(step({})) == 0


@pytest.mark.parametrize("tensor", [2, 4])
def test_with_tensor_replicas_our_plan_is_faster_by_their_number_where_the_network_is_slow(tensor):
    """Across hosts a leader sends a whole batch shard, where each of our devices sends its part of it."""
    data = 4 // tensor
    sides = (f"data={data},tensor={tensor}@{devices}:batch" for devices in ("0-3", "4-7"))
    slow_network = dataclasses.replace(NO_LATENCY, link_bandwidth=1e9)
    ours, theirs = (plan_seconds(hops, slow_network) for hops in both((8, 100), *sides))
    assert theirs / ours == pytest.approx(tensor, rel=1e-3)
    assert ours == pytest.approx(800 / 4 / 10, rel=1e-3)


def test_without_replicas_both_plans_are_the_same():
    ours, theirs = both((8, 6), "data=4@0-3:batch", "data=2@4-5:batch")
    assert [dict(step.bytes_per_pair) for step in ours] == [dict(step.bytes_per_pair) for step in theirs]
    assert plan_seconds(ours, ROUND) == plan_seconds(theirs, ROUND)


def test_leader_and_broadcast_by_hand():
    """Two batch shards, copied on two devices each, into one that is copied on three."""
    _, theirs = both((4, 3), "data=2,tensor=2@0-3:batch", "tensor=3@4-6:batch")
    cross, broadcast = theirs
    assert cross.bytes_per_pair == {(0, 4): 6, (2, 4): 6}
    assert broadcast.bytes_per_pair == {(4, 5): 12, (5, 6): 12}
    assert plan_seconds(theirs, ROUND) == pytest.approx(2 * 2 + 12 / 10 + 0.5 + 12 / 100)


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("data=3@0-2:batch", "data=4@4-7:batch"),
        ("data=2,tensor=2@0-3:batch,tensor", "context=2,tensor=2@4-7:,seq"),
        ("data=4@0-3:batch", "data=2,tensor=2@2-5:batch"),
    ],
)
def test_leaders_get_each_element_of_their_tile_once(source, destination):
    shape = (12, 4)
    tilings = [parse_side(text).tiling(shape) for text in (source, destination)]
    seen: dict[int, np.ndarray] = {}
    for move in leader_moves(shape, *tilings):
        region = tuple(slice(a, b) for a, b in zip(move.start, move.stop, strict=True))
        seen.setdefault(move.destination, np.zeros(shape, int))[region] += 1
        assert move.size == np.zeros(shape)[region].size
    for device, count in seen.items():
        tile = tilings[1].tile_of[device]
        spans = [size // parts for size, parts in zip(shape, tilings[1].counts, strict=True)]
        expected = np.zeros(shape, int)
        expected[tuple(slice(i * span, (i + 1) * span) for i, span in zip(tile, spans, strict=True))] = 1
        np.testing.assert_array_equal(count, expected)
    assert len(seen) == len(set(tilings[1].tile_of.values()))
