"""Weights are held once, and only what trains costs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax import Trainer
from hetjax.errors import GraphError
from hetjax.meshes import Layout, Placement
from hetjax.schedule.actions import Kind
from tests.harness.compiled_trainer import compile_some, trace_alone
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer

LAYOUTS = {"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="2-3", tensor=2)}


def make_trainer(**options) -> Trainer:
    return Trainer(make_graph(), Placement(LAYOUTS), optimizer=make_optimizer(), microbatches=2, **options)


@functools.cache
def compiled_trainer(**options) -> Trainer:
    trainer = make_trainer(**options)
    trainer.compile(make_batch())
    return trainer


@pytest.mark.parametrize(
    ("frozen", "compute_dtype"),
    [
        pytest.param((), "bfloat16", id="all train-bfloat16"),
        pytest.param(("llm",), "float32", id="frozen llm-float32"),
        pytest.param((), "float32", id="all train-float32", marks=[pytest.mark.slow, pytest.mark.quick]),
        pytest.param(("llm",), "bfloat16", id="frozen llm-bfloat16", marks=[pytest.mark.slow, pytest.mark.quick]),
    ],
)
def test_residuals_contain_no_weight(frozen, compute_dtype):
    trainer = make_trainer(frozen=frozen, compute_dtype=compute_dtype)
    for name, program in compile_some(trainer, make_batch(), programs=LAYOUTS).programs.items():
        weights = {aval.shape for aval in program.stage.params.values() if len(aval.shape) > 2}
        weights |= {aval.shape[1:] for aval in program.stage.params.values() if len(aval.shape) > 2}
        kept = {aval.shape for aval in program.residual_shapes}
        assert kept, f"{name} keeps its activations"
        assert not kept & weights


def test_a_microbatch_in_flight_costs_activations_only():
    """The bytes that a forward program keeps grow with the batch and would not, were weights among them."""
    batch = make_batch()
    kept = []
    for samples in (16, 32):
        trainer = Trainer(make_graph(), Placement(LAYOUTS), optimizer=make_optimizer())
        part = jax.tree.map(lambda x, n=samples: x[:n], batch)
        kept.append(
            sum(
                math.prod(aval.shape) * aval.dtype.itemsize
                for program in compile_some(trainer, part, programs=LAYOUTS).programs.values()
                for aval in program.residual_shapes
            )
        )
    assert kept[1] > 1.95 * kept[0]


def test_a_frozen_encoder_has_no_backward_no_optimizer_state_and_no_gradient_crossing():
    trainer = make_trainer(frozen=("vision",))
    step = trace_alone(trainer, make_batch())
    (boundary,) = step.boundaries.values()
    assert not step.programs["vision"].has_backward
    assert step.programs["llm"].gradient_inputs == ()
    assert boundary.ways[0].backward is None
    assert trainer.init().stages["vision"].opt_state is None
    assert {action.kind for action in trainer.schedule.on("vision")} == {Kind.FORWARD}
    assert not any(action.backward for action in trainer.schedule.actions if action.kind is Kind.TRANSFER)


def test_a_frozen_language_model_passes_gradients_but_makes_none_of_its_own():
    trainer = compiled_trainer(frozen=("llm",))
    state, batch = trainer.init(), make_batch()
    _, expected = compiled_trainer().loss_and_gradients(state, batch)
    _, gradients = trainer.loss_and_gradients(state, batch)
    assert gradients["llm"] == {}
    for path, reference in expected["vision"].items():
        assert relative_error(gradients["vision"][path], reference) <= 1e-5
    before = trainer.weights(state)
    state, _ = trainer.step(state, batch)
    after = trainer.weights(state)
    assert all(np.array_equal(before["llm"][path], after["llm"][path]) for path in before["llm"])
    assert all(not np.array_equal(before["vision"][path], after["vision"][path]) for path in before["vision"])


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_master_weights_and_gradients():
    trainer = compiled_trainer(compute_dtype="bfloat16")
    state, batch = trainer.init(), make_batch()
    step = trainer.compiled
    (boundary,) = step.boundaries.values()
    assert boundary.ways[0].forward.dtype == jnp.bfloat16
    assert all(aval.dtype == jnp.bfloat16 for aval in step.programs["llm"].stage.compute_params.values())
    loss, gradients = trainer.loss_and_gradients(state, batch)
    assert {g.dtype for g in gradients["llm"].values()} == {np.dtype("float32")}
    exact, _ = compiled_trainer().loss_and_gradients(state, batch)
    assert float(loss) == pytest.approx(float(exact), rel=2e-2)
    state, _ = trainer.step(state, batch)
    assert {leaf.dtype for leaf in state.stages["llm"].params.values()} == {jnp.dtype("float32")}


def test_all_modules_frozen_is_refused():
    with pytest.raises(GraphError, match="leave at least one to train"):
        make_trainer(frozen=("vision", "llm"))
