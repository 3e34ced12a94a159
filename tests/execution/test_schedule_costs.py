"""A schedule that chooses its order by costs gets them from the programs."""

from hetjax import Trainer
from hetjax.execution.flops import estimated_costs
from hetjax.meshes import Layout, Placement
from hetjax.schedule import colocated, simulate
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer

PLACEMENT = Placement({"vision": Layout(data=8), "llm": Layout(stage=2, data=2, tensor=2)})


def make_trainer(**options) -> Trainer:
    return Trainer(
        make_graph(), PLACEMENT, optimizer=make_optimizer(), schedule="bubble_fill", microbatches=4, **options
    )


def test_bubble_filling_weighs_programs_by_their_flops_once_shapes_are_known(monkeypatch, caplog):
    """An encoder piece on eight devices is much shorter than a stage on two, so that more of them fit an idle slot."""
    trainer = make_trainer()
    before = trainer.schedule
    traced = trainer.trace(make_batch())
    assert traced.step.schedule is traced.schedule
    assert trainer.schedule is before, "tracing leaves the trainer as it is"
    costs = estimated_costs(traced.step)
    given = make_trainer(schedule_costs=costs)
    assert given.schedule.digest() == traced.schedule.digest() != before.digest()
    assert given.report == traced.report
    assert simulate(traced.schedule, costs).makespan <= simulate(colocated(given.schedule.graph, 4), costs).makespan

    monkeypatch.setattr("hetjax.trainer.compile_all", lambda tasks, progress: None)
    with caplog.at_level("INFO", logger="hetjax.trainer"):
        trainer.compile(make_batch())
    assert trainer.compiled.schedule is trainer.schedule
    assert trainer.schedule.digest() == traced.schedule.digest()
    assert trainer.report == traced.report
    assert "schedule 'bubble_fill': order chosen by costs estimated from the FLOPs" in caplog.text
