"""The same figures as 2 and as 4 processes, whose borders the placements of the suite cross in every way."""

import jax
import numpy as np
import pytest

from hetjax import Trainer
from hetjax.meshes import Layout, Placement
from hetjax.stages.stage import Stage
from tests.harness.compile_quickly import quickly
from tests.harness.parity import schedules
from tests.harness.parity.cases import ALL, LAYOUTS, Case, covering_sample
from tests.harness.parity.comparison import TOLERANCE, expected, largest_errors, make_trainer
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer
from tests.harness.processes import run_processes

SAMPLE = covering_sample(ALL)

CROSSING = [
    # Modules in different processes; both modules in both; llm stages in different processes.
    Case("disjoint", "more", 1, "1f1b", 4),
    Case("colocated", "equal", 1, "colocated", 1),
    Case("overlapping", "fewer", 2, "gpipe", 4),
]


def history_of(dtype: str, layers: int = 2) -> list:
    """What one device gives, worked out here once: every process of a job would compile it for itself."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        with quickly():
            return expected(dtype, layers)
    finally:
        jax.config.update("jax_enable_x64", False)


def shard_errors(trainer: Trainer, history: list) -> dict[str, float]:
    """As `largest_errors`, of the shards that this process holds, each where it is."""
    batch, state = make_batch(), trainer.init()
    errors = {"loss": 0.0, "gradient": 0.0, "weight": 0.0}
    for loss, gradients, weights in history:
        executor = trainer._ready(batch)
        flight, _ = executor.gradients(state, *trainer._place(batch, executor.step))
        errors["gradient"] = max(errors["gradient"], largest_shard_error(trainer, flight.gradients, gradients))
        state, metrics = trainer.step(state, batch)
        params = {name: stage.params for name, stage in state.stages.items()}
        errors["weight"] = max(errors["weight"], largest_shard_error(trainer, params, weights))
        errors["loss"] = max(errors["loss"], relative_error(metrics["loss"], loss))
    return errors


def largest_shard_error(trainer: Trainer, arrays, references) -> float:
    worst = 0.0
    for stage in trainer.stages:
        for path, array in arrays.get(stage.name, {}).items():
            reference = np.asarray(references[stage.module][path])
            scale = np.max(np.abs(reference)) or 1
            if reference.shape != array.shape:
                first = sum(other.params[path].shape[0] for other in trainer.stages if is_before(other, stage))
                reference = reference[first:][: array.shape[0]]
            for shard in array.addressable_shards:
                difference = np.abs(np.asarray(shard.data) - reference[shard.index])
                worst = max(worst, float(np.max(difference, initial=0) / scale))
    return worst


def is_before(other: Stage, stage: Stage) -> bool:
    """Whether a stage of the same module comes earlier."""
    return other.module == stage.module and other.index < stage.index


def errors_of(cases: list[Case], dtype: str, history: list) -> list[dict[str, float]]:
    """Runs in every process: what it finds of each case."""
    found = []
    for case in cases:
        trainer = make_trainer(LAYOUTS[case[:3]], dtype, case.schedule, case.microbatches)
        found.append(shard_errors(trainer, history))
        jax.clear_caches()
    return found


def errors_of_schedules(history: list) -> list[dict[str, float]]:
    """Runs in every process: what it finds of each layout and schedule of `schedules`."""
    found = []
    for name, schedule, microbatches in schedules.QUICK:
        layouts, layers = schedules.LAYOUTS[name], schedules.LAYERS
        trainer = make_trainer(layouts, "float64", schedule, microbatches, layers=layers)
        found.append(shard_errors(trainer, history))
        jax.clear_caches()
    return found


# Parts of the encoder's devices in both processes, and each in one of them.
WINDOWS = [
    (LAYOUTS["colocated", "more", 2], "colocated", {"llm": 16, "vision": 2}),
    ((Layout(devices="2-5", data=4), Layout(devices="4-7", stage=2, tensor=2)), "1f1b", {"llm": 32, "vision": 4}),
]


def errors_of_windows(history: list) -> list[dict[str, float]]:
    """Runs in every process: what it finds where the encoder takes several microbatches at once."""
    found = []
    for layouts, schedule, microbatches in WINDOWS:
        trainer = make_trainer(layouts, "float64", schedule, microbatches)
        assert all(edge.at_once for edge in trainer.schedule.graph.edges if edge.source == "vision")
        found.append(shard_errors(trainer, history))
        jax.clear_caches()
    return found


def whole_errors(case: Case, history: list) -> dict[str, float]:
    """Runs in every process: all weights and gradients, which every process gets."""
    trainer = make_trainer(LAYOUTS[case[:3]], "float64", case.schedule, case.microbatches)
    return largest_errors(trainer, "float64", history=history)


def gradients_with_a_frozen_encoder() -> dict[str, int]:
    """Runs in every process: how many gradients it gets of each module."""
    layouts = dict(zip(("vision", "llm"), LAYOUTS["disjoint", "more", 1], strict=True))
    trainer = Trainer(make_graph(), Placement(layouts), optimizer=make_optimizer(), frozen=["vision"])
    _, gradients = trainer.loss_and_gradients(trainer.init(), make_batch())
    return {module: len(paths) for module, paths in gradients.items()}


def check(names: list, results: list[list[dict[str, float]]], dtype: str) -> None:
    """`results` are, for each process, what it found of each name."""
    for name, *errors in zip(names, *results, strict=True):
        for process, found in enumerate(errors):
            assert max(found.values()) <= TOLERANCE[dtype], (name, process, found)
        for what in ("gradient", "weight"):
            assert any(found[what] for found in errors), f"nobody compared a {what} of {name}"


def in_two(history: list) -> dict[str, list | dict]:
    return {
        "crossing": errors_of(CROSSING, "float64", history),
        "windows": errors_of_windows(history),
        "frozen": gradients_with_a_frozen_encoder(),
    }


def in_four(history: list, deeper: list) -> dict[str, list | dict]:
    return {"schedules": errors_of_schedules(deeper), "whole": whole_errors(CROSSING[0], history)}


@pytest.fixture(scope="module")
def two():
    """What each of two processes of four devices found: one job for several tests, since each start takes its time."""
    return run_processes(2, in_two, devices=4, x64=True, timeout=450, fresh=True, history=history_of("float64"))


@pytest.fixture(scope="module")
def four():
    """What each of four processes of two devices found."""
    histories = {"history": history_of("float64"), "deeper": history_of("float64", schedules.LAYERS)}
    return run_processes(4, in_four, devices=2, x64=True, timeout=600, fresh=True, **histories)


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_every_schedule_over_processes_equals_one_device(four):
    """Backwards in two parts, chunks, uneven stages and filled bubbles, over four processes of two devices."""
    check(schedules.QUICK, [found["schedules"] for found in four], "float64")


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_every_process_gets_all_weights_and_gradients(four):
    errors = [found["whole"] for found in four]
    assert all(max(each.values()) <= TOLERANCE["float64"] for each in errors), errors
    assert all(each["gradient"] and each["weight"] for each in errors), errors


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_equal_one_device(two):
    check(CROSSING, [found["crossing"] for found in two], "float64")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_windows_over_two_processes_equal_one_device(two):
    check(WINDOWS, [found["windows"] for found in two], "float64")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_frozen_module_in_one_process_has_no_gradients_in_any(two):
    first, second = (found["frozen"] for found in two)
    assert first == second
    assert first["vision"] == 0 < first["llm"]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sample_of_cases_over_processes_equals_one_device(processes, dtype):
    sizes = {"devices": 8 // processes, "x64": dtype == "float64", "timeout": 1400}
    given = {"cases": list(SAMPLE), "dtype": dtype, "history": history_of(dtype)}
    check(list(SAMPLE), run_processes(processes, errors_of, **sizes, **given), dtype)
