import contextlib
import io
import json

import jax
import numpy as np
import pytest

from hetjax.cli import main
from hetjax.errors import ConfigError
from hetjax.tools.bench import boundary as tool

SHAPE = (24, 64, 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of the command on the smallest tensor: the JSON of its last line, and its chart."""
    chart = tmp_path_factory.mktemp("bench") / "boundary.png"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(f"bench boundary --size 0.01 --repeats 2 --warmup 1 --out {chart} --json".split())
    return json.loads(out.getvalue().splitlines()[-1]), chart


def test_every_pair_is_timed_in_three_ways(run):
    numbers, chart = run
    assert [case["name"] for case in numbers["cases"]] == [pair.name for pair in tool.PAIRS]
    for case in numbers["cases"]:
        assert all(case[way]["seconds"] > 0 for way in ("hetjax", "device_put", "leader"))
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_our_bytes_are_the_fewest_and_replicas_halve_what_a_device_sends(run):
    cases = {case["name"]: case for case in run[0]["cases"]}
    assert run[0]["shape"] == list(SHAPE)
    for case in cases.values():
        assert case["hetjax"]["bytes_moved"] == case["lower_bound"]
    nbytes = 24 * 64 * 8 * 4
    equal = cases["equal, replicas"]
    assert equal["hetjax"]["bytes_per_device_max"] == nbytes // 4
    assert equal["leader"]["bytes_per_device_max"] == nbytes // 2
    assert cases["overlapping"]["hetjax"]["bytes_moved"] == nbytes // 2


@pytest.mark.parametrize("pair", tool.PAIRS, ids=lambda pair: pair.name)
def test_leader_and_broadcast_gives_the_array_and_never_reads_it_to_the_host(pair):
    case = tool._Case(pair, SHAPE, jax.devices())
    with jax.transfer_guard_device_to_host("disallow"):
        arrived = jax.block_until_ready(case.ways["leader"](case.x))
    np.testing.assert_array_equal(arrived, case.value)
    assert arrived.sharding == case.destination


def test_leaders_alone_send_between_the_sides():
    """Copies of the source other than the leader may hold anything: what arrives is the leader's."""
    pair = tool.Pair(name="", source="tensor=2@0-1", destination="tensor=2@2-3")
    case = tool._Case(pair, SHAPE, jax.devices())
    tiles = [shard.data if shard.device.id == 0 else -shard.data for shard in case.x.addressable_shards]
    unlike = jax.make_array_from_single_device_arrays(SHAPE, case.x.sharding, tiles)
    for shard in case.ways["leader"](unlike).addressable_shards:
        np.testing.assert_array_equal(shard.data, case.value)


def test_a_way_that_gives_another_array_is_not_timed(monkeypatch):
    case = tool._Case(tool.PAIRS[0], SHAPE, jax.devices())
    plain = case.ways["device_put"]
    monkeypatch.setitem(case.ways, "device_put", lambda x: plain(x) * 2)
    with pytest.raises(AssertionError, match="device_put of fan-in"):
        case.time(1, 1)


def test_sizes_divide_by_every_degree():
    assert tool.shape_of(16) == (24, 64, 2728)
    assert abs(24 * 64 * 2728 * 4 / 2**20 - 16) < 0.1


@pytest.mark.parametrize("options", [{"size": 0}, {"repeats": 0}, {"warmup": 0}])
def test_runs_that_time_nothing_are_refused(options):
    with pytest.raises(ConfigError, match="give more than 0 of each"):
        tool.bench_boundary(**options)
