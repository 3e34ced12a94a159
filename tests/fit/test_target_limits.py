"""What a target can hold, and where a placement is slow on it."""

import pytest

from hetjax.compilation.targets import parse_target
from hetjax.errors import ConfigError
from hetjax.fit.target_limits import check_holds, slow_tensor
from hetjax.meshes import Layout, Placement


@pytest.mark.parametrize(
    ("layouts", "words"),
    [
        ({"llm": Layout(devices="0-31", data=32)}, ["'llm'", "32 devices", "h100x16", "has 16", "--target h100x32"]),
        ({"llm": Layout(data=4, tensor=5)}, ["20 devices", "--target h100x24"]),
        ({"vision": Layout(devices="8-19", data=12), "llm": Layout(devices="0-7", data=8)}, ["'vision'", "20 devices"]),
    ],
)
def test_a_placement_larger_than_the_target_is_refused_with_one_that_is_large_enough(layouts, words):
    with pytest.raises(ConfigError) as error:
        check_holds(parse_target("h100x16"), layouts)
    assert all(word in str(error.value) for word in words)


def test_a_placement_that_fits_is_taken():
    check_holds(parse_target("h100x16"), {"llm": Layout(data=4, tensor=4), "vision": Layout(devices="15", data=1)})


@pytest.mark.parametrize(
    ("target", "layout", "hosts"),
    [
        ("h100x16", Layout(data=2, tensor=8), None),
        ("h100x16", Layout(tensor=16), 2),
        ("h100:4x4", Layout(data=2, tensor=8), 2),
        ("h100x16", Layout(devices="4-11", tensor=8), 2),
        ("h100x16", Layout(devices="0-1", data=2), None),
    ],
)
def test_tensor_across_hosts_is_warned_of(target, layout, hosts):
    target = parse_target(target)
    warnings = list(slow_tensor(target, Placement({"llm": layout}).resolve(target.devices)))
    assert len(warnings) == (hosts is not None)
    for warning in warnings:
        assert "'llm'" in warning and f"spans {hosts} hosts" in warning and "50 GB/s" in warning and "450" in warning
