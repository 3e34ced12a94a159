"""Qwen3-VL, whose encoder feeds inner layers of its language model, in placements against one device."""

import functools

import pytest

from hetjax import Trainer
from hetjax.meshes import Layout as L
from hetjax.meshes import Placement
from tests.harness.models.qwen3_vl_cases import make_batch, make_graph
from tests.harness.parity.comparison import assert_trains_alike
from tests.harness.parity.oracle import train_on_one_device
from tests.harness.parity.problem import make_optimizer

STEPS, SAMPLES, LENGTH = 2, 8, 32
# {name: (layouts, schedule, microbatches, model)}
CASES = {
    "stages": ((L(devices="0-3", stage=2, data=2), L(devices="4-7", stage=2, tensor=2)), "1f1b", 2, "qwen3_vl"),
    "three stages": ((L(devices="0-1", data=2), L(devices="2-7", stage=3, data=2)), "zero_bubble", 2, "qwen3_vl"),
    "colocated": ((L(data=4, tensor=2), L(context=2, tensor=2, data=2)), "colocated", 2, "qwen3_vl"),
    "window": (
        (L(devices="0-3", data=4), L(devices="4-7", fsdp=2, context=2)),
        "1f1b",
        {"llm": 4, "vision": 1},
        "qwen3_vl",
    ),
    "experts": ((L(devices="0-3", data=2, tensor=2), L(devices="4-7", expert=2, stage=2)), "1f1b", 2, "qwen3_vl_moe"),
    "experts, colocated": ((L(data=4, context=2), L(expert=2, data=2, tensor=2)), "colocated", 2, "qwen3_vl_moe"),
}
SLOW = ("stages", "colocated", "experts")


@functools.cache
def reference(model: str):
    optimizer = make_optimizer(small_gradients=True)
    return train_on_one_device(make_graph(model), make_batch(SAMPLES, LENGTH), optimizer, steps=STEPS, dtype="float64")


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SLOW else pytest.mark.exhaustive) for n in CASES])
def test_every_placement_equals_one_device(name, float64):
    layouts, schedule, microbatches, model = CASES[name]
    history, batch = reference(model), make_batch(SAMPLES, LENGTH)
    trainer = Trainer(
        make_graph(model), Placement(dict(zip(("vision", "llm"), layouts, strict=True))),
        optimizer=make_optimizer(small_gradients=True), schedule=schedule, microbatches=microbatches,
        param_dtype="float64", compute_dtype="float64", max_grad_norm=None,
    )  # fmt: skip
    assert_trains_alike(trainer, batch, history, limit=1e-10, label=name)
