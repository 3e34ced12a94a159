"""All schedules give the same numbers: on uneven stages, several chunks a device, and with backwards in two parts."""

import dataclasses

import pytest

from hetjax.schedule import SCHEDULES, Kind
from tests.harness.choices import others_slow
from tests.harness.parity.comparison import assert_equal, largest_errors, make_trainer
from tests.harness.parity.schedules import LAYERS, LAYOUTS, QUICK

MORE = [
    (name, schedule, 4)
    for name in LAYOUTS
    for schedule in SCHEDULES
    if (name, schedule, 4) not in QUICK and not (schedule in ("colocated", "bubble_fill") and "colocated" not in name)
]


def check(name: str, schedule: str, microbatches: int, dtype: str):
    trainer = make_trainer(LAYOUTS[name], dtype, schedule, microbatches, layers=LAYERS)
    assert_equal(largest_errors(trainer, dtype, layers=LAYERS), dtype)
    return trainer


@pytest.mark.parametrize(("name", "schedule", "microbatches"), others_slow(QUICK, QUICK[-1:]))
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_some_schedules_equal_one_device(name, schedule, microbatches, dtype):
    check(name, schedule, microbatches, dtype)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(("name", "schedule", "microbatches"), MORE[::5])
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_more_schedules_equal_one_device(name, schedule, microbatches, dtype):
    check(name, schedule, microbatches, dtype)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.quick
@pytest.mark.parametrize(("name", "schedule", "microbatches"), MORE)
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_every_schedule_equals_one_device(name, schedule, microbatches, dtype):
    check(name, schedule, microbatches, dtype)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.quick
@pytest.mark.parametrize(("name", "schedule", "microbatches"), QUICK)
@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_some_schedules_equal_one_device_in_float32(name, schedule, microbatches, dtype):
    check(name, schedule, microbatches, dtype)


def test_zero_bubble_runs_two_programs_where_a_gradient_goes_on_and_one_where_none_does():
    trainer = make_trainer(LAYOUTS["disjoint"], "float32", "zero_bubble", 4, layers=LAYERS)
    kinds = {stage.name: {action.kind for action in trainer.schedule.on(stage.name)} for stage in trainer.stages}
    assert Kind.BACKWARD in kinds["vision"] and Kind.BACKWARD_INPUT not in kinds["vision"]
    for name in ("llm.0", "llm.1"):
        assert {Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT} <= kinds[name] and Kind.BACKWARD not in kinds[name]


def test_balanced_layers_are_cut_by_cost():
    trainer = make_trainer(LAYOUTS["both-in-stages"], "float32", "1f1b", 4, layers=LAYERS)
    assert [stage.layers for stage in trainer.stages if stage.module == "llm"] == [(1, 2, 1)] * 3
    assert dataclasses.asdict(trainer.stages[2].layout)["layers"] == "balanced"
