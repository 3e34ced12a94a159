"""The same figures as 2 and as 4 processes, whose borders the placements of the suite cross in every way."""

import jax
import numpy as np
import pytest

from hetjax import Trainer
from hetjax.meshes import Layout, Placement
from hetjax.stages.stage import Stage
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


def shard_errors(trainer: Trainer, dtype: str, layers: int = 2) -> dict[str, float]:
    """As `largest_errors`, of the shards that this process holds, each where it is."""
    batch, state = make_batch(), trainer.init()
    errors = {"loss": 0.0, "gradient": 0.0, "weight": 0.0}
    for loss, gradients, weights in expected(dtype, layers):
        flight, _ = trainer._ready(batch).gradients(state, *trainer._place(batch))
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


def errors_of(cases: list[Case], dtype: str) -> list[dict[str, float]]:
    """Runs in every process: what it finds of each case."""
    found = []
    for case in cases:
        found.append(shard_errors(make_trainer(LAYOUTS[case[:3]], dtype, case.schedule, case.microbatches), dtype))
        jax.clear_caches()
    return found


def errors_of_schedules(names: list[tuple[str, str, int]], dtype: str) -> list[dict[str, float]]:
    """Runs in every process: what it finds of each layout and schedule of `schedules`."""
    found = []
    for name, schedule, microbatches in names:
        layers = schedules.LAYERS
        trainer = make_trainer(schedules.LAYOUTS[name], dtype, schedule, microbatches, layers=layers)
        found.append(shard_errors(trainer, dtype, layers))
        jax.clear_caches()
    return found


# Parts of the encoder's devices in both processes, and each in one of them.
WINDOWS = [
    (LAYOUTS["colocated", "more", 2], "colocated", {"llm": 16, "vision": 2}),
    ((Layout(devices="2-5", data=4), Layout(devices="4-7", stage=2, tensor=2)), "1f1b", {"llm": 32, "vision": 4}),
]


def errors_of_windows(dtype: str) -> list[dict[str, float]]:
    """Runs in every process: what it finds where the encoder takes several microbatches at once."""
    found = []
    for layouts, schedule, microbatches in WINDOWS:
        trainer = make_trainer(layouts, dtype, schedule, microbatches)
        assert all(edge.at_once for edge in trainer.schedule.graph.edges if edge.source == "vision")
        found.append(shard_errors(trainer, dtype))
        jax.clear_caches()
    return found


def whole_errors(case: Case, dtype: str) -> dict[str, float]:
    """Runs in every process: all weights and gradients, which every process gets."""
    return largest_errors(make_trainer(LAYOUTS[case[:3]], dtype, case.schedule, case.microbatches), dtype)


def check(processes: int, cases: list[Case], dtype: str, timeout: float) -> None:
    results = run_processes(
        processes, errors_of, devices=8 // processes, x64=dtype == "float64", timeout=timeout, cases=cases, dtype=dtype
    )
    for case, *errors in zip(cases, *results, strict=True):
        for process, found in enumerate(errors):
            assert max(found.values()) <= TOLERANCE[dtype], (case, process, found)
        for what in ("gradient", "weight"):
            assert any(found[what] for found in errors), f"nobody compared a {what}"


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_every_schedule_over_processes_equals_one_device():
    """Backwards in two parts, chunks, uneven stages and filled bubbles, over four processes of two devices."""
    names = schedules.QUICK
    results = run_processes(4, errors_of_schedules, devices=2, x64=True, timeout=600, names=names, dtype="float64")
    for name, *errors in zip(names, *results, strict=True):
        assert max(max(found.values()) for found in errors) <= TOLERANCE["float64"], (name, errors)
        assert any(found["gradient"] for found in errors), f"nobody compared a gradient of {name}"


@pytest.mark.slow
def test_two_processes_equal_one_device():
    check(2, CROSSING, "float64", timeout=200)


@pytest.mark.slow
def test_windows_over_two_processes_equal_one_device():
    results = run_processes(2, errors_of_windows, devices=4, x64=True, timeout=250, dtype="float64")
    for case, *errors in zip(WINDOWS, *results, strict=True):
        assert max(max(found.values()) for found in errors) <= TOLERANCE["float64"], (case, errors)
        assert any(found["gradient"] for found in errors), f"nobody compared a gradient of {case}"


@pytest.mark.slow
def test_every_process_gets_all_weights_and_gradients():
    found = run_processes(4, whole_errors, devices=2, x64=True, timeout=250, case=CROSSING[0], dtype="float64")
    assert all(max(errors.values()) <= TOLERANCE["float64"] for errors in found), found


def gradients_with_a_frozen_encoder() -> dict[str, int]:
    """Runs in every process: how many gradients it gets of each module."""
    layouts = dict(zip(("vision", "llm"), LAYOUTS["disjoint", "more", 1], strict=True))
    trainer = Trainer(make_graph(), Placement(layouts), optimizer=make_optimizer(), frozen=["vision"])
    _, gradients = trainer.loss_and_gradients(trainer.init(), make_batch())
    return {module: len(paths) for module, paths in gradients.items()}


@pytest.mark.slow
def test_a_frozen_module_in_one_process_has_no_gradients_in_any():
    first, second = run_processes(2, gradients_with_a_frozen_encoder, devices=4, timeout=200)
    assert first == second
    assert first["vision"] == 0 < first["llm"]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sample_of_cases_over_processes_equals_one_device(processes, dtype):
    check(processes, list(SAMPLE), dtype, timeout=1400)
