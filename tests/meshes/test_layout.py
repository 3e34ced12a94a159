import pytest
from jax.sharding import PartitionSpec as P

from hetjax.meshes import AXES, BATCH_AXES, Layout, PlacementError


def refusal(action, *args, **kwargs) -> str:
    with pytest.raises(PlacementError) as caught:
        action(*args, **kwargs)
    return str(caught.value)


def test_degrees_are_counted_over_all_axes_and_stages():
    layout = Layout(data=2, fsdp=3, expert=5, context=7, tensor=11, stage=13)
    assert layout.mesh_shape == (2, 3, 5, 7, 11)
    assert layout.device_count == 2 * 3 * 5 * 7 * 11 * 13
    assert layout.batch_degree == 2 * 3 * 5
    assert AXES[-1] == "tensor"
    assert BATCH_AXES == ("data", "fsdp", "expert")


@pytest.mark.parametrize("axis", [*AXES, "stage"])
@pytest.mark.parametrize("degree", [0, -2, 1.5, "2"])
def test_a_degree_that_is_no_positive_whole_number_is_refused(axis, degree):
    message = refusal(Layout(**{axis: degree}).validate, "llm")
    assert message == f"module 'llm': {axis}={degree!r}; a degree is a whole number of 1 or more"


def test_degrees_that_do_not_cover_the_devices_state_the_equation_and_the_fix():
    message = refusal(Layout(devices="4-6", data=2, tensor=2).validate, "llm")
    assert message == (
        "module 'llm': layout covers data*tensor = 2*2 = 4 devices, but devices='4-6' are 3; "
        "give it 4 devices or change a degree"
    )
    assert "stage*tensor = 2*2 = 4 devices" in refusal(Layout(devices="0-2", stage=2, tensor=2).validate, "llm")
    assert "data = 1 = 1 devices, but devices='0-1' are 2" in refusal(Layout(devices="0-1").validate, "llm")


def test_all_devices_are_counted_only_when_they_are_known():
    layout = Layout(devices="all", data=3)
    layout.validate("llm")
    layout.check_device_count("llm", 3)
    assert "devices='all' are 4" in refusal(layout.check_device_count, "llm", 4)


def test_a_rule_for_an_axis_that_does_not_exist_lists_the_axes():
    message = refusal(Layout(rules={"frames": "time"}).validate, "audio")
    assert message == (
        "module 'audio': rules put dim 'frames' on axis 'time'; the axes are data, fsdp, expert, context, tensor"
    )


@pytest.mark.parametrize(
    ("dims", "spec"),
    [
        (("embed", "mlp"), P(("fsdp",), ("tensor",))),
        (("embed", "heads", "head_dim"), P(("fsdp",), ("tensor",), None)),
        (("layers", "kv_heads", "embed"), P(None, ("tensor",), ("fsdp",))),
        (("vocab", "embed"), P(("tensor",), ("fsdp",))),
        (("experts", "embed", "mlp"), P(("expert",), ("fsdp",), ("tensor",))),
        ((None, "patch"), P(None, None)),
        ((), P()),
    ],
)
def test_weights_split_over_fsdp_tensor_and_expert(dims, spec):
    layout = Layout(data=2, fsdp=2, expert=2, context=2, tensor=2)
    assert layout.weight_spec(dims, (8,) * len(dims), name="w") == spec


@pytest.mark.parametrize(
    ("dims", "spec"),
    [
        (("batch", "seq", "embed"), P(("data", "fsdp", "expert"), ("context",), None)),
        (("batch", "seq", "heads", "head_dim"), P(("data", "fsdp", "expert"), ("context",), ("tensor",), None)),
        (("batch", "seq", "vocab"), P(("data", "fsdp", "expert"), ("context",), ("tensor",))),
    ],
)
def test_activations_split_over_batch_context_and_tensor(dims, spec):
    layout = Layout(data=2, fsdp=2, expert=2, context=2, tensor=2)
    assert layout.activation_spec(dims, (8,) * len(dims), name="x") == spec


def test_between_attention_and_mlp_the_sequence_is_split_over_tensor_too_by_default():
    dims = ("batch", "residual_seq", "embed")
    degrees = {"data": 2, "context": 2, "tensor": 2}
    assert Layout(**degrees).activation_spec(dims, (8,) * 3, name="x") == P(("data",), ("context", "tensor"), None)
    alone = Layout(**degrees, sequence_parallel=False)
    assert alone.activation_spec(dims, (8,) * 3, name="x") == P(("data",), ("context",), None)
    message = refusal(Layout(tensor=4).activation_spec, dims, (8, 6, 8), name="module 'llm': x")
    assert message == (
        "module 'llm': x: dim 'residual_seq' of size 6 is not divisible by tensor=4 (6 % 4 = 2); "
        "change the size or the degree, or set sequence_parallel=False"
    )


def test_zero_1_splits_master_weights_and_not_those_to_compute_with():
    dims, shape = ("embed", "mlp"), (8, 8)
    layout = Layout(fsdp=2, tensor=2, zero=1)
    assert layout.weight_spec(dims, shape, name="w") == P(("fsdp",), ("tensor",))
    assert layout.compute_spec(dims, shape, name="w") == P(None, ("tensor",))
    assert Layout(fsdp=2).compute_spec(dims, shape, name="w") == Layout(fsdp=2).weight_spec(dims, shape, name="w")
    assert [layout.weight_axes("embed"), layout.compute_axes("embed")] == [("fsdp",), ()]
    message = refusal(Layout(fsdp=2, zero=2, devices="0-1").validate, "llm")
    assert message == "module 'llm': zero=2; choose one of 1, 3"


@pytest.mark.parametrize(
    ("degrees", "dims", "shape", "spec"),
    [
        ({"data": 4}, ("embed", "mlp"), (8, 6), P(("data",), None)),
        ({"data": 2, "context": 2, "tensor": 2}, ("vocab", "embed"), (8, 8), P(("tensor",), ("context", "data"))),
        ({"fsdp": 2, "expert": 2}, ("layers", "embed", "mlp"), (2, 8, 8), P(None, ("fsdp", "expert"), None)),
        # Experts have no copies along their own axis.
        ({"data": 2, "expert": 2}, ("experts", "embed", "mlp"), (8, 8, 8), P(("expert",), ("data",), None)),
        # As far as the width divides: by context, and not by data too.
        ({"data": 4, "context": 2}, ("embed", "mlp"), (6, 8), P(("context",), None)),
        # Without names the largest dim that divides, over fsdp too.
        ({"data": 2, "fsdp": 2}, (None, None), (6, 8), P(None, ("fsdp", "data"))),
        ({"data": 2, "fsdp": 2}, ("layers", "width"), (8, 8), P(None, None)),
        ({"data": 2, "context": 2, "optimizer_copies": 2}, ("embed", "mlp"), (8, 8), P(("context",), None)),
        ({"data": 2, "context": 2, "optimizer_copies": 4}, ("embed", "mlp"), (8, 8), P(None, None)),
    ],
)
def test_the_optimizer_is_divided_over_axes_along_which_weights_are_copied(degrees, dims, shape, spec):
    assert Layout(**degrees).optimizer_spec(dims, shape, name="w") == spec


def test_a_number_of_copies_that_no_axes_have_is_refused_with_those_that_can_be():
    message = refusal(Layout(data=4, context=3, optimizer_copies=2, devices="0-11").validate, "llm")
    assert message == (
        "module 'llm': optimizer_copies=2; copies lie along whole axes, so that with data=4, context=3 there can be "
        "1, 3, 4, 12; for 2 copies over data=8 write data=2, fsdp=4, zero=1"
    )


def test_axes_of_degree_one_split_nothing():
    layout = Layout(fsdp=2)
    assert layout.activation_spec(("batch", "seq", "heads"), (2, 3, 5), name="x") == P(("fsdp",), None, None)
    assert layout.weight_spec(("embed", "mlp"), (2, 3), name="w") == P(("fsdp",), None)


def test_rules_add_dims_and_win_over_the_built_in_ones():
    layout = Layout(tensor=2, context=2, rules={"frames": "context", "mlp": "context"})
    assert layout.activation_spec(("batch", "frames"), (3, 4), name="x") == P(None, ("context",))
    assert layout.weight_spec(("embed", "mlp"), (3, 4), name="w") == P(None, ("context",))


def test_two_dims_on_one_axis_are_refused_with_both_names_and_the_fix():
    message = refusal(Layout(tensor=2).weight_spec, ("heads", "mlp"), (4, 8), name="module 'llm': weight w")
    assert message == (
        "module 'llm': weight w: dims 'heads' and 'mlp' both ride on axis 'tensor' (tensor=2); "
        "put one on another axis with the layout's rules, or set tensor=1"
    )
    assert Layout(tensor=1).weight_spec(("heads", "mlp"), (4, 8), name="w") == P(None, None)


def test_a_size_that_does_not_divide_is_refused_with_the_equation():
    message = refusal(
        Layout(data=2, fsdp=3).activation_spec, ("batch", "embed"), (8, 5), name="module 'llm': port 'tokens'"
    )
    assert message == (
        "module 'llm': port 'tokens': dim 'batch' of size 8 is not divisible by data=2*fsdp=3 (8 % 6 = 2); "
        "change the size or the degree"
    )


def test_another_number_of_names_than_dims_is_refused():
    message = refusal(Layout().weight_spec, ("embed",), (4, 8), name="module 'llm': weight w")
    assert message == (
        "module 'llm': weight w: 1 dim names ('embed',) for 2 dims of shape (4, 8); "
        "name each dim once, None for a dim without a name"
    )


def test_a_form_of_context_attention_that_does_not_exist_lists_the_forms():
    message = refusal(Layout(context=2, context_attention="gather").validate, "llm")
    assert message == "module 'llm': context_attention='gather'; choose one of ring, all_gather"
    Layout(context=2, devices="0-1", context_attention="all_gather").validate("llm")


def test_axes_of_an_activation_dim_leave_out_those_of_degree_one():
    layout = Layout(data=2, expert=2, context=4, rules={"frames": "context", "heads": "fsdp"})
    assert layout.activation_axes("batch") == ("data", "expert")
    assert layout.activation_axes("seq") == layout.activation_axes("frames") == ("context",)
    assert layout.activation_axes("heads") == layout.activation_axes("mlp") == layout.activation_axes("embed") == ()


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (dict(chunks=0), "module 'llm': chunks=0; a degree is a whole number of 1 or more"),
        (dict(layers="fair"), "module 'llm': layers='fair'; give even, balanced, or a list of numbers of 1 or more"),
        (dict(layers=5), "module 'llm': layers=5; give even, balanced, or a list of numbers of 1 or more"),
        (dict(stage=2, layers=[True, 3]), "module 'llm': layers=[True, 3]; give even, balanced"),
        (dict(stage=2, layers=[4, 0]), "module 'llm': layers=[4, 0]; give even, balanced, or a list of numbers"),
        (
            dict(stage=2, chunks=2, layers=[2, 2]),
            "module 'llm': layers=[2, 2] are 2 numbers, but stage*chunks = 2*2 = 4; give a number for each",
        ),
    ],
)
def test_layers_and_chunks_that_do_not_fit_are_refused(layout, told):
    assert refusal(Layout(**layout).validate, "llm").startswith(told)


def test_chunks_take_no_devices():
    layout = Layout(devices="0-3", stage=2, tensor=2, chunks=3, layers=[1, 2, 3, 3, 2, 1])
    layout.validate("llm")
    assert (layout.device_count, layout.stage_count) == (4, 6)
