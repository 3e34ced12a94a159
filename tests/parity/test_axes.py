"""Every axis inside a module, alone, in pairs and mixed, against one device without any mesh."""

import functools
import itertools

import numpy as np
import optax
import pytest

from hetjax import Trainer
from hetjax.meshes import Placement
from tests.harness.parity import problem
from tests.harness.parity.axes import ALONE, AXES, CASES, MIXED, PAIRS, QUICK, SLOW, make_batch, make_graph
from tests.harness.parity.comparison import TOLERANCE
from tests.harness.parity.oracle import relative_error, steps_on_one_device
from tests.harness.parity.problem import MAX_GRAD_NORM, STEPS
from tests.harness.processes import run_processes

make_optimizer = functools.partial(problem.make_optimizer, small_gradients=True)


@functools.cache
def expected(kind: str, dtype: str):
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), make_optimizer())
    return steps_on_one_device(make_graph(kind), make_batch(kind), optimizer, steps=STEPS, dtype=dtype)


def make_trainer(name: str, dtype: str) -> Trainer:
    case = CASES[name]
    return Trainer(
        make_graph(case.kind),
        Placement(case.layouts),
        optimizer=make_optimizer(),
        schedule=case.schedule,
        microbatches=case.microbatches,
        max_grad_norm=MAX_GRAD_NORM,
        param_dtype=dtype,
        compute_dtype=dtype,
    )


def largest_error(name: str, dtype: str) -> tuple[float, str]:
    """The largest relative error of three steps, and of what: a loss, a gradient, a weight, or a router's bias."""
    kind = CASES[name].kind
    trainer, batch = make_trainer(name, dtype), make_batch(kind)
    state, errors = trainer.init(), {}
    for step, (loss, gradients, weights, buffers) in enumerate(expected(kind, dtype)):
        _, found_gradients = trainer.loss_and_gradients(state, batch)
        state, metrics = trainer.step(state, batch)
        found_weights = trainer.weights(state)
        errors[f"loss {step}"] = relative_error(metrics["loss"], loss)
        for what, found, wanted in (("gradient", found_gradients, gradients), ("weight", found_weights, weights)):
            for module, path in ((m, p) for m in wanted for p in wanted[m]):
                errors[f"{what} {step} {module} {path}"] = relative_error(found[module][path], wanted[module][path])
        for path, wanted in buffers["llm"].items():
            parts = [state.stages[stage.name].buffers[path] for stage in trainer.stages if stage.module == "llm"]
            errors[f"buffer {step} {path}"] = float(np.max(np.abs(np.concatenate(parts) - wanted)))
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def check(name: str, dtype: str) -> None:
    if CASES[name].devices == 8:
        error, what = largest_error(name, dtype)
    else:
        ((error, what),) = run_processes(
            1, largest_error, devices=CASES[name].devices, x64=dtype == "float64", timeout=600, name=name, dtype=dtype
        )
    print(f"{name} {dtype}: {error:.2e} ({what})")
    assert error <= TOLERANCE[dtype], (error, what)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_some_axes_equal_one_device(name, dtype):
    check(name, dtype)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_more_axes_equal_one_device(name, dtype):
    check(name, dtype)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.quick
@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"], indirect=True)
def test_every_axis_and_pair_and_mixture_equals_one_device(name, dtype):
    check(name, dtype)


def test_the_cases_are_every_axis_every_pair_and_thirty_more():
    def split(name):
        return {axis for axis in AXES if getattr(CASES[name].layouts["llm"], axis) > 1}

    assert [split(f"alone-{axis}") for axis in ALONE] == [{axis} for axis in AXES]
    assert {frozenset(split(name)) for name in PAIRS} == set(map(frozenset, itertools.combinations(AXES, 2)))
    assert len(MIXED) == 30
    assert sum(case.devices == 16 for case in MIXED.values()) == 8
