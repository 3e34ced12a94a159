"""Devices of a group and axes of a mesh, in every form in which compiled programs write them."""

import pytest

from hetjax.compilation.hlo.device_groups import axes_along, groups_of, pairs_of

MESH = {"data": 2, "tensor": 4}
ROWS, COLUMNS = ((0, 1, 2, 3), (4, 5, 6, 7)), ((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{}", (tuple(range(8)),)),
        ("{{0,1,2,3},{4,5,6,7}}", ROWS),
        ("{{0,4},{1,5},{2,6},{3,7}}", COLUMNS),
        ("[2,4]<=[8]", ROWS),
        ("[4,2]<=[2,4]T(1,0)", COLUMNS),
        ("[2,4]<=[4,2]T(1,0)", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("[4,2]<=[2,2,2]T(0,2,1)", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=2,'b'=4] {'b'}", ROWS),
        ("mesh['a'=2,'b'=4] {'a'}", COLUMNS),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0'}", COLUMNS),
        ("mesh['a'=2,'b'=4] {'a','b'}", (tuple(range(8)),)),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ROWS),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", ((3, 2), (1, 0))),
        ("mesh['a'=4,'b'=2] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=4,'b'=2] {'a':(2)2,'b'}", ROWS),
    ],
)
def test_groups_of_every_form(written, groups):
    assert groups_of(f", channel_id=1, replica_groups={written}, dimensions={{0}}, to_apply=%add", 8) == groups


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        (ROWS, ("tensor",)),
        (COLUMNS, ("data",)),
        ((tuple(range(8)),), ("data", "tensor")),
        (((0, 2), (1, 3), (4, 6), (5, 7)), ("tensor",)),
        (((0,), (1,)), ()),
    ],
)
def test_axes_along_which_a_group_lies(groups, axes):
    assert axes_along(groups, MESH) == axes


def test_axes_of_pairs():
    pairs = pairs_of(", channel_id=1, source_target_pairs={{0,1},{1,2},{4,5},{3,3}}, frontend_attributes={x={{7,0}}}")
    assert pairs == ((0, 1), (1, 2), (4, 5), (3, 3))
    assert axes_along(pairs, MESH) == ("tensor",)
    assert axes_along(((0, 5),), MESH) == ("data", "tensor")


def test_a_device_outside_of_the_mesh_is_an_error():
    with pytest.raises(ValueError, match=r"device 8 is not one of the 8 of a mesh \{'data': 2, 'tensor': 4\}"):
        axes_along(((0, 8),), MESH)
