"""The same figures as 2 and as 4 processes, whose borders the placements of the suite cross in every way."""

import jax
import pytest

from tests.parity.cases import ALL, LAYOUTS, Case, covering_sample
from tests.parity.test_parity import TOLERANCE, largest_errors, make_trainer
from tests.processes import run_processes

SAMPLE = covering_sample(ALL)


def errors_of(cases: list[Case], dtype: str) -> list[dict[str, float]]:
    """Runs in every process: what it finds of each case, all weights and gradients and, where it is, the loss."""
    found = []
    for case in cases:
        trainer = make_trainer(LAYOUTS[case[:3]], dtype, case.schedule, case.microbatches)
        found.append(largest_errors(trainer, dtype))
        jax.clear_caches()
    return found


def check(processes: int, cases: list[Case], dtype: str, timeout: float) -> None:
    results = run_processes(
        processes, errors_of, devices=8 // processes, x64=dtype == "float64", timeout=timeout, cases=cases, dtype=dtype
    )
    for case, *errors in zip(cases, *results, strict=True):
        for process, found in enumerate(errors):
            assert max(found.values()) <= TOLERANCE[dtype], (case, process, found)
        assert any(found["loss"] for found in errors), "nobody compared a loss"


CROSSING = [
    # Modules in different processes; both modules in both; llm stages in different processes.
    Case("disjoint", "more", 1, "1f1b", 4),
    Case("colocated", "equal", 1, "colocated", 1),
    Case("overlapping", "fewer", 2, "gpipe", 4),
]


def test_two_processes_equal_one_device():
    check(2, CROSSING, "float64", timeout=200)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sample_of_cases_over_processes_equals_one_device(processes, dtype):
    check(processes, list(SAMPLE), dtype, timeout=1400)
