"""A model with vision, sound and language, each on a mesh of its own with a layout of its own, equals one device."""

import functools

import numpy as np
import optax
import pytest

from hetjax import Trainer
from meshes import Layout, Placement
from tests.parity.omni import make_batch, make_graph
from tests.parity.oracle import relative_error

ONE = {name: Layout(devices="0") for name in ("vision", "audio", "llm")}
PLACEMENTS = {
    "three meshes": {
        "vision": Layout(devices="0-1", data=2),
        "audio": Layout(devices="2-3", tensor=2),
        "llm": Layout(devices="4-7", expert=2, tensor=2),
    },
    "context and stages": {
        "vision": Layout(devices="0-3", fsdp=2, tensor=2),
        "audio": Layout(devices="4-7", data=4),
        "llm": Layout(devices="0-7", stage=2, context=2, fsdp=2),
    },
    "colocated": {
        "vision": Layout(devices="0-7", data=8),
        "audio": Layout(devices="0-7", data=4, fsdp=2),
        "llm": Layout(devices="0-7", data=2, expert=2, context=2),
    },
}
LIMITS = {"float32": 1e-5, "float64": 1e-10}


@functools.cache
def reference(dtype: str, pruning_rate: float):
    return losses_gradients_weights(ONE, dtype, pruning_rate, "1f1b", 1)


def losses_gradients_weights(placement, dtype: str, pruning_rate: float, schedule: str, microbatches: int):
    graph = make_graph(pruning_rate)
    trainer = Trainer(
        graph, Placement(placement), optimizer=optax.adamw(1e-3, eps=1e-3), schedule=schedule,
        microbatches=microbatches, param_dtype=dtype, max_grad_norm=1.0,
    )  # fmt: skip
    batch = make_batch(dtype=np.dtype(dtype).type)
    state = trainer.init(0)
    _, gradients = trainer.loss_and_gradients(state, batch)
    losses = []
    for _ in range(3):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))
    biases = {
        path: np.asarray(array)
        for stage in state.stages.values()
        for path, array in stage.buffers.items()
        if path.endswith("bias")
    }
    return np.array(losses), gradients, trainer.weights(state), biases


def check(placement: str, dtype: str, pruning_rate: float = 0.0, schedule: str = "1f1b", microbatches: int = 2) -> None:
    expected = reference(dtype, pruning_rate)
    found = losses_gradients_weights(PLACEMENTS[placement], dtype, pruning_rate, schedule, microbatches)
    errors = {"loss": relative_error(found[0], expected[0])}
    for kind, place in (("gradient", 1), ("weight", 2)):
        for module, arrays in expected[place].items():
            for path, array in arrays.items():
                errors[kind, module, path] = relative_error(found[place][module][path], array)
    worst = max(errors, key=errors.get)
    print(f"{placement} {dtype} {schedule}: {errors[worst]:.2e} ({worst})")
    assert errors[worst] < LIMITS[dtype], (worst, errors[worst])


def test_three_modules_on_three_meshes_equal_one_device(float64):
    check("three meshes", "float64")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LIMITS, indirect=True)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_equals_one_device(placement, dtype):
    check(placement, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["three meshes", "context and stages"])
def test_pruned_videos_equal_one_device(placement, float64):
    check(placement, "float64", pruning_rate=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "schedule"), [("context and stages", "zero_bubble"), ("colocated", "colocated")])
def test_schedules_equal_one_device(placement, schedule, float64):
    check(placement, "float64", schedule=schedule, microbatches=4)
