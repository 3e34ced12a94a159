import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from hetjax.meshes import AXES, Layout, Placement, PlacementError, format_devices


def refusal(action, *args) -> str:
    with pytest.raises(PlacementError) as caught:
        action(*args)
    return str(caught.value)


def test_tensor_is_innermost_and_stages_hold_consecutive_devices():
    placement = Placement({"llm": Layout(devices="0-7", stage=2, data=2, tensor=2)}).resolve(8)
    grid = placement.grids["llm"]
    assert grid.shape == (2, 2, 1, 1, 1, 2)
    assert grid[:, :, 0, 0, 0, :].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert placement.device_numbers("llm") == tuple(range(8))
    assert placement.device_numbers("llm", 1) == (4, 5, 6, 7)


def test_devices_keep_the_order_written():
    placement = Placement({"llm": Layout(devices="6,4-5,0", stage=2, tensor=2)}).resolve(8)
    assert placement.device_numbers("llm", 0) == (6, 4)
    assert placement.device_numbers("llm", 1) == (5, 0)


def test_all_means_every_device():
    placement = Placement({"llm": Layout(data=3)}).resolve(3)
    assert placement.device_numbers("llm") == (0, 1, 2)
    message = refusal(Placement({"llm": Layout(data=3)}).resolve, 8)
    assert message == (
        "module 'llm': layout covers data = 3 = 3 devices, but devices='all' are 8; "
        "give it 3 devices or change a degree"
    )


def test_a_device_that_is_not_there_is_named_with_a_way_out_that_suffices():
    placement = Placement({"llm": Layout(devices="4-11", data=8)})
    message = refusal(placement.resolve, 8)
    assert message == (
        "module 'llm': devices='4-11' names device 8, but there are 8 devices (0-7); change the range, or on a "
        "machine without accelerators set fake_devices: 12 or more"
    )
    assert placement.resolve(12).device_numbers("llm") == tuple(range(4, 12))


def test_what_needs_no_devices_to_be_known_is_refused_at_once():
    assert "placement is empty; give every module a layout" in refusal(Placement, {})
    assert refusal(Placement, {"llm": 4}) == "module 'llm': its layout is 4; give it a Layout"
    assert "module 'llm': devices='0-1,1' lists device 1 twice" in refusal(
        Placement, {"llm": Layout(devices="0-1,1", data=3)}
    )
    assert "module 'llm': layout covers data = 2 = 2 devices" in refusal(
        Placement, {"llm": Layout(devices="0-2", data=2)}
    )


def test_a_placement_reads_as_a_mapping_of_layouts():
    layouts = {"vision": Layout(devices="0"), "llm": Layout(devices="1")}
    assert dict(Placement(layouts)) == layouts
    assert len(Placement(layouts)) == 2


def test_mesh_holds_the_devices_of_its_stage_under_the_names_of_the_axes():
    placement = Placement({"llm": Layout(devices="2-7", stage=2, data=3)}).resolve(8)
    mesh = placement.mesh("llm", 1)
    assert mesh.axis_names == AXES
    assert [device.id for device in mesh.devices.flat] == [jax.devices()[i].id for i in (5, 6, 7)]
    backwards = placement.mesh("llm", 0, devices=jax.devices()[::-1])
    assert [device.id for device in backwards.devices.flat] == [jax.devices()[7 - i].id for i in (2, 3, 4)]


def test_each_stage_has_the_degrees_and_devices_of_its_own():
    placement = Placement(
        {"llm": Layout(devices="0-3,6-7,4-5", stage=2, data=2, tensor=2), "head": Layout(devices="3")}
    )
    resolved = placement.resolve(8)
    degrees = {"data": 2, "tensor": 2}
    for stage, devices in ((0, "0-3"), (1, "6-7,4-5")):
        assert {axis: size for axis, size in resolved.mesh("llm", stage).shape.items() if size > 1} == degrees
        assert format_devices(resolved.device_numbers("llm", stage)) == devices
    assert set(resolved.mesh("head", 0).shape.values()) == {1}
    assert format_devices(resolved.device_numbers("head", 0)) == "3"


def test_resolving_touches_no_device():
    """Where JAX finds no platform at all, a placement still resolves."""
    script = """
import jax
from hetjax.meshes import Layout, Placement
placement = Placement({"vision": Layout(devices="0-2", data=3), "llm": Layout(devices="4-7", data=2, tensor=2)})
resolved = placement.resolve(8)
assert resolved.device_numbers("vision", 0) and resolved.device_numbers("llm", 0)
placement["llm"].weight_spec(("embed", "mlp"), (4, 4), name="w")
try:
    jax.devices()
except RuntimeError:
    print("no device was touched")
"""
    environment = {**os.environ, "JAX_PLATFORMS": "nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=os.getcwd(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "no device was touched", done.stderr


def test_grids_of_any_degrees_use_every_device_once():
    for layout in (Layout(data=2, fsdp=2, context=2), Layout(stage=4, tensor=2), Layout(expert=4, tensor=2)):
        grid = Placement({"llm": layout}).resolve(8).grids["llm"]
        assert np.sort(grid.ravel()).tolist() == list(range(8))


def test_chunks_go_round_the_meshes():
    placement = Placement({"llm": Layout(stage=2, tensor=2, chunks=2)}).resolve(4)
    assert [placement.device_numbers("llm", stage) for stage in range(4)] == [(0, 1), (2, 3), (0, 1), (2, 3)]
    assert placement.mesh("llm", 3).shape["tensor"] == 2
