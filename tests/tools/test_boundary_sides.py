import jax
import pytest
from jax.sharding import NamedSharding

from hetjax.boundary import Tiling, tiling_of
from hetjax.errors import BoundaryError
from hetjax.meshes import Layout, Placement, PlacementError
from hetjax.tools.boundary_sides import parse_side, tiling_of_layout

SHAPE = (32, 16, 24)


@pytest.mark.parametrize(
    ("degrees", "devices", "dims"),
    [
        ({"data": 4, "tensor": 2}, "0-7", ("batch", None, None)),
        ({"data": 2, "context": 2, "tensor": 2}, "7,6,5,4,3,2,1,0", ("batch", "seq", "heads")),
        ({"data": 2, "fsdp": 2, "expert": 2}, "0-7", ("batch", "seq", None)),
        ({}, "5", ("batch", "seq", None)),
        ({"tensor": 3}, "1,3,5", (None, None, "mlp")),
    ],
)
def test_a_layouts_tiling_equals_that_of_its_sharding_on_devices(degrees, devices, dims):
    layout = Layout(devices=devices, **degrees)
    mesh = Placement({"m": layout}).resolve(8).mesh("m", 0, jax.devices())
    sharding = NamedSharding(mesh, layout.activation_spec(dims, SHAPE, name="x"))
    assert tiling_of_layout(layout, dims, SHAPE, name="x") == tiling_of(sharding, 3)
    text = ",".join(f"{axis}={degree}" for axis, degree in degrees.items())
    side = parse_side(f"{text}@{devices}:{','.join(dim or '' for dim in dims)}")
    assert side.tiling(SHAPE) == tiling_of(sharding, 3)


def test_a_dim_may_be_called_by_its_axis_and_its_last_names_left_out():
    side = parse_side("data=2,tensor=2@4-7:data,,tensor")
    assert side.tiling((4, 3, 6)).spec == (("data",), (), ("tensor",))
    assert parse_side("data=2,tensor=2@4-7:batch").tiling((4, 3, 6)).spec == (("data",), (), ())


def test_all_devices_are_as_many_as_the_degrees_need():
    assert parse_side("data=3,tensor=2@all:batch").tiling((3,)).devices == tuple(range(6))


def test_one_device_needs_no_degrees_and_a_scalar_no_names():
    assert parse_side("@3").tiling(()) == Tiling(
        axes=(("data", 1), ("fsdp", 1), ("expert", 1), ("context", 1), ("tensor", 1)), devices=(3,), spec=()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=4", "names no devices; write degrees@devices:dims"),
        ("data=4@:batch", "names no devices"),
        ("date=4@0-3:batch", "'date=4' gives no degree of an axis; the axes are data, fsdp"),
        ("stage=2@0-1:batch", "'stage=2' gives no degree of an axis"),
        ("data=four@0-3:batch", "'data=four' is no degree"),
        ("data=0@0-3:batch", "'data=0' is no degree"),
        ("data=2,data=2@0-3:batch", "axis 'data' has two degrees"),
        ("data=4@0-2:batch", r"--from: layout covers data = 4 = 4 devices, but devices='0-2' are 3"),
        ("data=4@0-x:batch", "is no device range"),
        ("data=2@0,0:batch", "lists device 0 twice"),
        ("data=4@0-3:batc", "no axis splits a dim called 'batc'"),
    ],
)
def test_a_side_that_makes_no_sense_is_refused_by_name(text, message):
    with pytest.raises(BoundaryError, match=message) as error:
        parse_side(text, name="--from")
    assert str(error.value).startswith("--from")


def test_more_names_than_dims_are_refused():
    with pytest.raises(BoundaryError, match=r"names 2 dims \(batch, seq\), but the shape \(8,\) has 1"):
        parse_side("data=2@0-1:batch,seq").tiling((8,))


def test_a_size_that_does_not_divide_is_refused_with_the_equation():
    with pytest.raises(PlacementError, match=r"--to: dim 'batch' of size 6 is not divisible by data=4 \(6 % 4 = 2\)"):
        parse_side("data=4@0-3:batch").tiling((6, 2), name="--to")
