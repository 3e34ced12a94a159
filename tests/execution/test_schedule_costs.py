"""A schedule that chooses its order by costs gets them from the programs."""

from hetjax import Trainer
from hetjax.execution.flops import estimated_costs
from hetjax.meshes import Layout, Placement
from hetjax.schedule import colocated, simulate
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer


def test_bubble_filling_weighs_programs_by_their_flops_once_shapes_are_known():
    """An encoder piece on eight devices is much shorter than a stage on two, so that more of them fit an idle slot."""
    placement = Placement({"vision": Layout(data=8), "llm": Layout(stage=2, data=2, tensor=2)})
    options = {"optimizer": make_optimizer(), "schedule": "bubble_fill", "microbatches": 4}
    estimated = Trainer(make_graph(), placement, **options)
    before = estimated.schedule.digest()
    step, _ = estimated.trace(make_batch())
    assert step.schedule is estimated.schedule
    costs = estimated_costs(step)
    given = Trainer(make_graph(), placement, schedule_costs=costs, **options)
    assert given.schedule.digest() == estimated.schedule.digest() != before
    assert simulate(estimated.schedule, costs).makespan <= simulate(colocated(given.schedule.graph, 4), costs).makespan
