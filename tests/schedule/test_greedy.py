import math

import pytest

from hetjax.schedule import Costs, Kind, one_f_one_b
from hetjax.schedule.filling import Filling
from hetjax.schedule.gpipe import backwards, forwards
from hetjax.schedule.greedy import greedy


def make_filling(graph, microbatches: int, share: float) -> Filling:
    plain, vision = one_f_one_b(graph, microbatches), graph.stage("vision")
    llm = [stage.name for stage in graph.stages if stage.module == "llm"]
    return Filling(
        graph=graph,
        microbatches=microbatches,
        costs=Costs(of={("vision", Kind.FORWARD): share, ("vision", Kind.BACKWARD): 2 * share}),
        pipeline=[plain.on(name)[:-1] for name in llm],
        encoders=[forwards(vision, microbatches), backwards(vision, microbatches)],
    )


def text(filling: Filling, order) -> list[str]:
    return [f"{action.stage}:{action}" for action, _, _ in filling.timed(order)]


@pytest.mark.parametrize("patience", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ahead", [1, 2, 8])
@pytest.mark.parametrize("independent", [True, False])
def test_every_program_comes_once_and_after_its_needs(make_shared, independent, ahead, patience):
    filling = make_filling(make_shared(3, independent=independent), 8, 0.5)
    order = greedy(filling, ahead=ahead, patience=patience)
    assert len(order) == len(filling.programs)
    assert filling.judge(order)[0] < math.inf


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_forwards_stay_near_their_reader_while_anything_else_can_run(make_shared, ahead):
    filling = make_filling(make_shared(2), 6, 0.25)
    order = text(filling, greedy(filling, ahead=ahead, patience=1.0))
    for index in range(ahead, 6):
        assert order.index(f"vision:F{index}") > order.index(f"llm.0:F{index - ahead}")


def test_patience_lets_a_program_hold_the_pipeline_up_by_its_share(make_shared):
    """llm.1 can start at 3; a piece of two units that starts on its device at 2 would hold it up by half a piece."""
    filling = make_filling(make_shared(2), 2, 2.0)
    urgent, patient = (text(filling, greedy(filling, ahead=2, patience=patience)) for patience in (0.4, 0.5))
    assert urgent[:4] == ["vision:F0", "llm.0:F0", "llm.1:F0", "llm.1:B0"]
    assert patient[:4] == ["vision:F0", "llm.0:F0", "vision:F1", "llm.1:F0"]
