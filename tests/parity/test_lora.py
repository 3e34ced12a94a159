"""Low-rank maps beside frozen weights, on every kind of layout, against the dense model of their sum on one device."""

import functools

import numpy as np
import optax
import pytest

from hetjax import Trainer
from hetjax.compilation.hlo.products import matrix_products
from hetjax.compilation.hlo.program_text import read_program
from hetjax.meshes import Layout, Placement
from hetjax.stages.flat_state import by_path, flatten_module
from tests.harness.choices import others_slow
from tests.harness.compiled_trainer import compile_some
from tests.harness.parity.lora import make_batch, make_graph, make_module, merged_graph, projected
from tests.harness.parity.oracle import relative_error, train_on_one_device
from tests.harness.parity.problem import ROWS, SAMPLES

LAYOUTS = {
    "one-device": ("dense", Layout(devices="0"), 2),
    "data2-fsdp2-tensor2": ("dense", Layout(data=2, fsdp=2, tensor=2), 2),
    "stage2-context2-tensor2": ("dense", Layout(stage=2, context=2, tensor=2), 2),
    "expert2-fsdp2-tensor2": ("experts", Layout(expert=2, fsdp=2, tensor=2), 1),
    "data2-tensor4-gathered": ("dense", Layout(data=2, tensor=2, zero=1, devices="0-3"), 4),
}
QUICK = ["data2-fsdp2-tensor2"]


@functools.cache
def dense(model: str):
    """(loss, gradients) of the sums on one device."""
    (step,) = train_on_one_device(merged_graph(model), make_batch(), optax.sgd(0.1), steps=1, dtype="float64")
    return step[0], step[1]["llm"]


def make_trainer(name: str, **options) -> Trainer:
    model, layout, microbatches = LAYOUTS[name]
    options = {"param_dtype": "float64", "compute_dtype": "float64", "microbatches": microbatches, **options}
    return Trainer(make_graph(model), Placement({"llm": layout}), optimizer=optax.adam(0.1, eps=1e-3), **options)


@pytest.mark.parametrize("name", others_slow(LAYOUTS, QUICK))
def test_gradients_are_the_projected_ones_of_the_dense_model(name, float64):
    model, *_ = LAYOUTS[name]
    trainer, (loss, gradients) = make_trainer(name), dense(model)
    found_loss, found = trainer.loss_and_gradients(trainer.init(), make_batch())
    expected = projected(make_module(model), gradients)
    assert relative_error(found_loss, loss) < 1e-12
    assert found["llm"].keys() == expected.keys()
    for path, gradient in expected.items():
        assert np.abs(gradient).max() > 1e-6, path
        assert relative_error(found["llm"][path], gradient) < 1e-10, path


@pytest.mark.parametrize("zero_bubble", others_slow([False, True], [False]))
def test_only_the_low_rank_maps_move(zero_bubble, float64):
    schedule = {"schedule": "zero_bubble", "microbatches": 4} if zero_bubble else {}
    trainer = make_trainer("stage2-context2-tensor2" if zero_bubble else "one-device", **schedule)
    state = trainer.init()
    before = trainer.weights(state)["llm"]
    held = {path for stage in state.stages.values() for path in by_path(stage.opt_state)}
    state, _ = trainer.step(state, make_batch())
    after = trainer.weights(state)["llm"]
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {path for path in before if "/lora/" in path}
    assert held == {"0/count", *(f"0/{moment}/{path}" for moment in ("mu", "nu") for path in moved)}


@pytest.mark.parametrize("name", others_slow(["one-device", "data2-fsdp2-tensor2"], QUICK))
def test_a_backward_has_no_product_for_the_gradient_of_a_frozen_weight(name, float64):
    """Of the full one it leaves out a product with each matrix; each low-rank map has the two that what trains has."""
    _, layout, _ = LAYOUTS[name]
    frozen, full = (flops(backward_products(graph(), layout)) for graph in (make_graph, merged_graph))
    sizes = {path: array.size for path, array in flatten_module(make_module())[1].items() if path.endswith("kernel")}
    low_rank = sum(size for path, size in sizes.items() if "/lora/" in path)
    devices = 1 if name == "one-device" else 8
    of_one_product = 2 * SAMPLES * ROWS // devices
    assert full - frozen == of_one_product * (sum(sizes.values()) - low_rank - 2 * low_rank)


@pytest.mark.slow
@pytest.mark.quick
def test_a_backward_has_no_product_for_the_gradients_of_frozen_experts(float64):
    layout = LAYOUTS["expert2-fsdp2-tensor2"][1]
    of_kernels = "nbd,nbf->ndf"
    frozen, full = (backward_products(graph("experts"), layout) for graph in (make_graph, merged_graph))
    assert [each for each in full if of_kernels in each.op_name]
    assert not [each for each in frozen if of_kernels in each.op_name]


def backward_products(graph, layout: Layout):
    trainer = Trainer(graph, Placement({"llm": layout}), optimizer=optax.sgd(0.1))
    programs = compile_some(trainer, make_batch(), programs=["llm"]).programs["llm"].programs
    return matrix_products(read_program(programs["backward"].text)).known


def flops(products) -> int:
    return sum(each.flops * each.times for each in products)
