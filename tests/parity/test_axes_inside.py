"""Axes inside of a module, against one device: `tensor` with and without sequence parallelism, `fsdp` in both forms."""

import pytest

from hetjax.errors import BatchError
from hetjax.meshes import Layout, PlacementError
from tests.harness.choices import others_slow
from tests.harness.parity.comparison import assert_equal, largest_errors, make_trainer
from tests.harness.parity.problem import make_batch

# {name: (vision layout, llm layout, schedule, microbatches)}
QUICK = {
    "sequence parallel, in stages": (
        Layout(data=2, tensor=4), Layout(stage=2, data=2, tensor=2), "1f1b", 4
    ),
    "tensor alone, zero 1 feeds zero 3": (
        Layout(data=2, fsdp=2, tensor=2, sequence_parallel=False, zero=1),
        Layout(data=2, fsdp=2, tensor=2, sequence_parallel=False),
        "colocated",
        1,
    ),
    "zero 3 in replicas feeds zero 1 in replicas": (
        Layout(data=2, fsdp=4), Layout(data=2, fsdp=2, tensor=2, zero=1), "gpipe", 2
    ),
    "all axes": (
        Layout(stage=2, context=2, tensor=2), Layout(fsdp=2, context=2, tensor=2, zero=1), "1f1b", 2
    ),
}  # fmt: skip

MORE = {
    "sequence parallel, both in stages": (Layout(stage=2, data=2, tensor=2), Layout(stage=2, data=2, tensor=2)),
    "tensor alone, both in stages": (
        Layout(stage=2, data=2, tensor=2, sequence_parallel=False),
        Layout(stage=2, data=2, tensor=2, sequence_parallel=False),
    ),
    "one sequence parallel": (
        Layout(devices="0-3", tensor=4),
        Layout(devices="4-7", data=2, tensor=2, sequence_parallel=False),
    ),
    "zero 3": (Layout(fsdp=8), Layout(fsdp=8)),
    "zero 1": (Layout(fsdp=8, zero=1), Layout(fsdp=8, zero=1)),
    "zero 3 in replicas": (Layout(data=4, fsdp=2), Layout(data=2, fsdp=2, tensor=2)),
    "zero 1 in replicas, in stages": (Layout(data=4, fsdp=2, zero=1), Layout(stage=2, data=2, fsdp=2, zero=1)),
    "zero 3 on three": (Layout(devices="0-1", fsdp=2), Layout(devices="2-7", fsdp=2, tensor=1, context=3)),
    "expert splits the batch": (Layout(expert=2, fsdp=2, tensor=2), Layout(expert=2, fsdp=2, tensor=2, zero=1)),
}


@pytest.mark.parametrize("name", others_slow(QUICK, []))
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_axes_inside_a_module_equal_one_device(name, dtype):
    vision, llm, schedule, microbatches = QUICK[name]
    assert_equal(largest_errors(make_trainer((vision, llm), dtype, schedule, microbatches), dtype), dtype)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.quick
@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("dtype", ["float32", "float64"], indirect=True)
def test_more_axes_inside_a_module_equal_one_device(name, dtype, microbatches):
    assert_equal(largest_errors(make_trainer(MORE[name], dtype, "1f1b", microbatches), dtype), dtype)


@pytest.mark.parametrize(
    ("llm", "told"),
    [
        ({"tensor": 3}, "weight embedding of shape (40, 24): dim 'vocab' of size 40 is not divisible by tensor=3"),
        (
            {"tensor": 4},
            "key/kernel of shape (2, 24, 2, 6): dim 'kv_heads' of size 2 is not divisible by tensor=4 (2 % 4 = 2)",
        ),
        ({"fsdp": 5}, "embedding of shape (40, 24): dim 'embed' of size 24 is not divisible by fsdp=5 (24 % 5 = 4)"),
        ({"fsdp": 5, "zero": 1}, "dim 'embed' of size 24 is not divisible by fsdp=5 (24 % 5 = 4)"),
    ],
)  # fmt: skip
def test_weights_that_do_not_divide_are_refused_when_the_trainer_is_made(llm, told):
    layout = Layout(**llm)
    layout = Layout(**llm, devices=f"0-{layout.device_count - 1}")
    with pytest.raises(PlacementError) as caught:
        make_trainer((Layout(devices="0"), layout), "float32", "gpipe", 1)
    assert str(caught.value).startswith("module 'llm': ")
    assert told in str(caught.value)


def short_batch(rows: int):
    """The batch with its first rows alone."""
    batch = make_batch()
    cut = {port: x if port == "image_positions" else x[:, :rows] for port, x in batch["llm"].items()}
    return {"vision": batch["vision"], "llm": cut}


@pytest.mark.parametrize(
    ("layouts", "rows", "told"),
    [
        (
            (Layout(devices="0"), Layout(devices="0-1", tensor=2)),
            11,
            "module 'llm': sequence parallelism needs seq % (tensor) = 0, but 11 % (2) = 1; "
            "pad sequences to 12 positions or set sequence_parallel=False",
        ),
        (
            (Layout(devices="0"), Layout(devices="0-5", context=3, tensor=2)),
            9,
            "module 'llm': a causal sequence needs seq % (2*context) = 0, but 9 % (2*3) = 3; "
            "pad sequences to 12 positions",
        ),
        (
            (Layout(devices="0"), Layout(devices="0-7", context=4, tensor=2)),
            12,
            "module 'llm': a causal sequence needs seq % (2*context) = 0, but 12 % (2*4) = 4",
        ),
        (
            (Layout(devices="0"), Layout(devices="0-3", tensor=2, context=2)),
            10,
            "module 'llm': a causal sequence needs seq % (2*context) = 0, but 10 % (2*2) = 2",
        ),
        (
            (Layout(devices="0-7", context=4, tensor=2), Layout(devices="0")),
            12,
            "module 'vision': activation of shape (64, 4, 48): dim 'residual_seq' of size 4 is not divisible by "
            "context=4*tensor=2 (4 % 8 = 4); change the size or the degree, or set sequence_parallel=False",
        ),
    ],
)
def test_sequences_that_do_not_divide_are_refused_before_any_program_is_compiled(layouts, rows, told):
    trainer = make_trainer(layouts, "float32", "gpipe", 1)
    with pytest.raises(BatchError) as caught:
        trainer.compile(short_batch(rows))
    assert told in str(caught.value)


@pytest.mark.slow
@pytest.mark.quick
def test_without_sequence_parallelism_any_length_will_do():
    layouts = (Layout(devices="0"), Layout(devices="0-1", tensor=2, sequence_parallel=False))
    trainer, one = (make_trainer(each, "float32", "gpipe", 1) for each in (layouts, (Layout(devices="0"),) * 2))
    batch = short_batch(11)
    losses = [float(each.loss_and_gradients(each.init(), batch)[0]) for each in (trainer, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
