"""Preparing a run: what it prints of the schedule that it compiles for."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from hetjax.cluster.job import Job
from hetjax.cluster.watchdog import Watchdog
from hetjax.schedule import Schedule, StageGraph, bubble_fill, one_f_one_b
from hetjax.training import prepare


class StubTrainer:
    """A trainer whose `compile` only sets the schedule that it was given for it."""

    offload_lines = ()

    def __init__(self, schedule: Schedule, chosen: Schedule):
        self.schedule, self._chosen = schedule, chosen

    def compile(self, shapes, *, progress: bool, also) -> None:
        self.schedule = self._chosen


def printed_by_compiling(monkeypatch, trainer: StubTrainer) -> str:
    monkeypatch.setattr(prepare, "choose_batch_shapes", lambda data, trainer, config: [{}])
    out = io.StringIO()
    parts = SimpleNamespace(trainer=trainer, data=None, evaluating={})
    config = SimpleNamespace(data=None, model=None)
    prepare.compile_programs(parts, config, Job(0, 1, Watchdog()), Console(file=out, soft_wrap=True))
    return out.getvalue()


def test_a_schedule_whose_order_compiling_chose_is_printed_on_one_line(monkeypatch):
    graph = StageGraph.chain(["vision", "llm"])
    printed = printed_by_compiling(monkeypatch, StubTrainer(bubble_fill(graph, 2), bubble_fill(graph, 2)))
    assert printed == "schedule bubble_fill: order chosen by costs estimated from the FLOPs of the programs\n"


@pytest.mark.parametrize("schedule", [one_f_one_b, bubble_fill])
def test_a_schedule_that_compiling_keeps_is_not_printed(monkeypatch, schedule):
    kept = schedule(StageGraph.chain(["vision", "llm"]), 2)
    assert printed_by_compiling(monkeypatch, StubTrainer(kept, kept)) == ""
