"""The hybrid language model, with packed documents, in every kind of layout, against one device without any mesh."""

import functools

import numpy as np
import pytest

from hetjax import ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from tests.harness.models.tiny_hybrid import HYBRID, build_hybrid, hybrid_batch
from tests.harness.parity import problem
from tests.harness.parity.oracle import relative_error, steps_on_one_device

STEPS, TOLERANCE = 2, {"float32": 1e-5, "float64": 1e-10}
# {name: (layout, schedule, microbatches)}
CASES = {
    "data2-context2-tensor2": (Layout(data=2, context=2, tensor=2), "1f1b", 2),
    "stage2-expert2-tensor2-uneven": (Layout(stage=2, layers=[2, 1], expert=2, tensor=2), "1f1b", 2),
    "data8": (Layout(data=8), "1f1b", 1),
    "fsdp4-tensor2": (Layout(fsdp=4, tensor=2), "1f1b", 2),
    "expert4-data2": (Layout(expert=4, data=2), "1f1b", 1),
    "context4": (Layout(devices="0-3", context=4), "1f1b", 1),
    "tensor2-whole-rows": (Layout(devices="0-1", tensor=2, sequence_parallel=False), "1f1b", 2),
    "expert2-context2-fsdp2": (Layout(expert=2, context=2, fsdp=2), "1f1b", 2),
    "stage2-fsdp2-context2-zero-bubble": (Layout(stage=2, fsdp=2, context=2, layers=[1, 2]), "zero_bubble", 2),
    "stage3-data2-gpipe": (Layout(devices="0-5", stage=3, data=2), "gpipe", 4),
    "stage2-tensor2-balanced": (Layout(devices="0-3", stage=2, tensor=2, layers="balanced"), "1f1b", 2),
}
# In `.ci/run`; the others with `-m exhaustive`.
CHOSEN = (
    "data2-context2-tensor2", "stage2-expert2-tensor2-uneven", "expert2-context2-fsdp2",
    "stage2-fsdp2-context2-zero-bubble",
)  # fmt: skip
REMATS = {"stage2-fsdp2-context2-zero-bubble": ("mamba", "mlp"), "stage3-data2-gpipe": "full", "data8": "dots"}


make_optimizer = functools.partial(problem.make_optimizer, small_gradients=True)


@functools.cache
def make_graph() -> ModuleGraph:
    return ModuleGraph({"llm": build_hybrid(HYBRID)})


@functools.cache
def expected(dtype: str):
    batch = {"llm": hybrid_batch()}
    return steps_on_one_device(make_graph(), batch, make_optimizer(), steps=STEPS, dtype=dtype)


def check(name: str, dtype: str) -> None:
    layout, schedule, microbatches = CASES[name]
    trainer = Trainer(
        make_graph(),
        Placement({"llm": layout}),
        optimizer=make_optimizer(),
        schedule=schedule,
        microbatches=microbatches,
        param_dtype=dtype,
        compute_dtype=dtype,
        remat={"llm": REMATS[name]} if name in REMATS else {},
    )
    batch, state = {"llm": hybrid_batch()}, trainer.init()
    for loss, gradients, weights, buffers in expected(dtype):
        _, actual = trainer.loss_and_gradients(state, batch)
        state, metrics = trainer.step(state, batch)
        errors = {"loss": relative_error(metrics["loss"], loss)}
        after = trainer.weights(state)
        for path, wanted in gradients["llm"].items():
            errors["gradient", path] = relative_error(actual["llm"][path], wanted)
            errors["weight", path] = relative_error(after["llm"][path], weights["llm"][path])
        worst = max(errors, key=errors.get)
        assert errors[worst] <= TOLERANCE[dtype], (worst, errors[worst])
        for path, wanted in buffers["llm"].items():
            held = [state.stages[stage.name].buffers for stage in trainer.stages]
            joined = np.concatenate([np.asarray(each[path]) for each in held if path in each])
            np.testing.assert_array_equal(joined, wanted)
            assert path.endswith("/counts") or np.count_nonzero(wanted), "a bias"


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in CHOSEN else pytest.mark.exhaustive) for name in CASES]
)
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_all_layouts_of_a_hybrid_equal_one_device(name, dtype):
    check(name, dtype)
