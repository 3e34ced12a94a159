"""A layout never changes the numbers: every case against one device without any mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from hetjax.boundary.copies import Copies
from hetjax.execution.executor import Executor
from hetjax.execution.steps_by_shape import StepsByShape
from hetjax.meshes import Layout
from hetjax.schedule import build_schedule
from tests.harness.parity.cases import ALL, LAYOUTS, MICROBATCHES, SCHEDULES, Case, applies, covering_sample, pairs_of
from tests.harness.parity.comparison import TOLERANCE, assert_equal, largest_errors, make_trainer
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import make_batch

SAMPLE = covering_sample(ALL)


# The first one stands below in float32; the whole product in float64 is slow.
@pytest.mark.parametrize("case", SAMPLE[1:3], ids=str)
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_sample_of_cases_equals_one_device(case: Case, dtype):
    trainer = make_trainer(LAYOUTS[case[:3]], dtype, case.schedule, case.microbatches)
    assert_equal(largest_errors(trainer, dtype), dtype)


@pytest.mark.parametrize("case", SAMPLE[:1], ids=str)
@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_some_cases_equal_one_device_in_float32(case: Case, dtype):
    trainer = make_trainer(LAYOUTS[case[:3]], dtype, case.schedule, case.microbatches)
    assert_equal(largest_errors(trainer, dtype), dtype)


def test_sample_covers_every_pair_of_choices():
    assert set().union(*map(pairs_of, SAMPLE)) == set().union(*map(pairs_of, ALL))


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("microbatches", MICROBATCHES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout)))
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.exhaustive), "float64"], indirect=True)
def test_every_case_equals_one_device(layout, microbatches, dtype):
    """All schedules of a layout run the same programs, which are compiled once."""
    trainer = make_trainer(LAYOUTS[layout], dtype, "gpipe", microbatches)
    trainer.compile(make_batch())
    step = trainer.compiled
    for name in SCHEDULES:
        if applies(name, layout[0]):
            schedule = build_schedule(name, step.schedule.graph, microbatches)
            trainer._steps = StepsByShape([make_batch()], [Executor(dataclasses.replace(step, schedule=schedule))])
            assert trainer.compiled.schedule.name == name
            assert_equal(largest_errors(trainer, dtype), dtype)


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_suite_fails_when_two_samples_are_swapped_at_the_boundary(dtype):
    """The suite can fail: routing two samples' tokens to each other shows in every figure."""
    trainer = make_trainer(LAYOUTS["disjoint", "more", 1], dtype, "1f1b", 1)
    trainer.compile(make_batch())
    (boundary,) = trainer.compiled.boundaries.values()
    transport = boundary.ways[0].forward
    swapped = list(transport.plan.moves)
    first, second = (i for i, move in enumerate(swapped) if move.destination_slot == 0 and move.destination in (4, 6))
    swapped[first], swapped[second] = (
        dataclasses.replace(swapped[first], source=swapped[second].source, source_slot=swapped[second].source_slot),
        dataclasses.replace(swapped[second], source=swapped[first].source, source_slot=swapped[first].source_slot),
    )
    wrong = dataclasses.replace(transport.plan)
    vars(wrong)["moves"] = tuple(swapped)
    transport.copies = Copies(wrong, transport.copies.destination, transport.dtype)
    errors = largest_errors(trainer, dtype)
    assert min(errors.values()) > 100 * TOLERANCE[dtype], errors


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_three_devices_and_four_equal_one_device(dtype):
    """Degrees need not be powers of two: an encoder on three devices feeds a language model on four."""
    batch = jax.tree.map(lambda x: x[:24], make_batch())
    layouts = (Layout(devices="0-2", data=3), Layout(devices="4-7", data=2, tensor=2))
    three = make_trainer(layouts, dtype, "1f1b", 2)
    one = make_trainer((Layout(devices="0"), Layout(devices="0")), dtype, "1f1b", 1)
    gradients = [trainer.loss_and_gradients(trainer.init(), batch)[1] for trainer in (three, one)]
    for module, paths in gradients[1].items():
        for path, reference in paths.items():
            assert relative_error(gradients[0][module][path], reference) <= TOLERANCE[dtype]
    assert np.isfinite(float(three.loss_and_gradients(three.init(), batch)[0]))
