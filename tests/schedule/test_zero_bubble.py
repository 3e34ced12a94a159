import inspect

import pytest

from hetjax.schedule import Costs, Kind, StageGraph, check, one_f_one_b, simulate, zero_bubble

UNIT = Costs(update=0)  # F = I = W = 1, B = 2


def names(count: int) -> list[str]:
    return [f"s{index}" for index in range(count)]


def test_gradients_of_weights_are_late_by_how_much_shallower_a_stage_is_than_the_deepest():
    schedule = zero_bubble("abc", 4)
    assert " ".join(map(str, schedule.on("a"))) == "F0 F1 F2 B0 F3 B1 B2 B3 update"
    assert " ".join(map(str, schedule.on("b"))) == "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3 update"
    assert " ".join(map(str, schedule.on("c"))) == "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3 update"


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
def test_idle_share_of_equal_stages_is_the_closed_form(stages, microbatches):
    timeline = simulate(zero_bubble(names(stages), microbatches), UNIT)
    if microbatches >= stages:
        assert timeline.makespan == 3 * microbatches + stages - 1
        assert timeline.idle_share() == pytest.approx((stages - 1) / (3 * microbatches + stages - 1))
    else:  # the first microbatch has to go through all stages and back before the last stage can be kept busy
        assert timeline.makespan == 2 * (microbatches + stages) - 1


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("costs", [UNIT, Costs(backward=2.5, backward_input=1.5, update=0)])
def test_less_is_idle_than_with_1f1b(stages, microbatches, costs):
    mine, plain = (simulate(make(names(stages), microbatches), costs) for make in (zero_bubble, one_f_one_b))
    assert mine.idle_share() < plain.idle_share() - 1e-9


def test_passes_the_checker_on_every_graph_and_keeps_no_more_than_the_deepest_stage_of_1f1b(graph, microbatches):
    report = check(zero_bubble(graph, microbatches))
    deepest = max(graph.depth(stage.name) for stage in graph.stages)
    for stage in graph.stages:
        depth = deepest if graph.splits(stage.name) else graph.depth(stage.name)
        assert report.peak_live[stage.name] == min(microbatches, depth + 1) * stage.backward


def test_stages_with_one_part_only_run_whole_backwards(named_graph):
    frozen = zero_bubble(named_graph("frozen-llm"), 2)  # gradients pass through a frozen language model
    kinds = {(a.stage, a.kind) for a in frozen.actions}
    assert ("llm.0", Kind.BACKWARD) in kinds
    assert ("vision.0", Kind.BACKWARD) in kinds  # no input
    assert ("vision.1", Kind.BACKWARD_INPUT) in kinds


def test_a_single_stage_has_nothing_to_split():
    assert zero_bubble("a", 3).actions == one_f_one_b(StageGraph.chain("a"), 3).actions


def test_docstring_shows_what_the_function_makes(device_picture):
    for row in device_picture(zero_bubble("abc", 4), UNIT):
        assert row.upper() in inspect.getdoc(zero_bubble)
