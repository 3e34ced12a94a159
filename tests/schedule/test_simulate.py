import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import Costs, Kind, StageGraph, StageNode, colocated, gpipe, one_f_one_b, simulate
from hetjax.schedule.actions import Schedule, forward, transfer


@pytest.mark.parametrize("make", [gpipe, one_f_one_b])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("costs", [Costs(update=0), Costs(forward=3, backward=3, update=0)])
def test_idle_share_of_equal_stages_is_the_closed_form(make, stages, costs, microbatches):
    """p stages, m microbatches: each stage works m of the m + p - 1 slots that the step lasts."""
    timeline = simulate(make([f"s{i}" for i in range(stages)], microbatches), costs)
    slots = microbatches + stages - 1
    assert timeline.makespan == slots * (costs.forward + costs.backward)
    share = pytest.approx((stages - 1) / slots, abs=1e-12)
    assert timeline.idle_share() == share
    assert all(timeline.idle_share(f"s{i}") == share for i in range(stages))


def test_transfers_delay_what_reads_them():
    costs = Costs(transfer=0.5, update=0)
    assert simulate(gpipe("ab", 1), costs).makespan == 1 + 0.5 + 1 + 2 + 0.5 + 2
    # b: F0 1.5-2.5, F1 2.5-3.5, B0 3.5-5.5, B1 5.5-7.5; a: B0 6-8, B1 8-10
    assert simulate(gpipe("ab", 2), costs).makespan == 10


def test_transfers_that_occupy_devices_keep_both_ends_from_computing():
    # a: F0 0-1, T0 1-1.5, F1 1.5-2.5, T1 2.5-3; b: F1 3-4, B0 4-6; TB0 6-6.5; both: B 6.5-8.5; TB1 8.5-9; a: B1 9-11
    assert simulate(gpipe("ab", 2), Costs(transfer=0.5, update=0), transfers_occupy=True).makespan == 11


def test_transfers_on_one_edge_go_one_after_another():
    timeline = simulate(gpipe("ab", 3), Costs(transfer=4))
    spans = [s for s in timeline.spans if s.action.kind is Kind.TRANSFER and not s.action.backward]
    assert [(s.start, s.end) for s in spans] == [(1, 5), (5, 9), (9, 13)]


def test_stages_on_one_device_take_as_long_as_their_sum():
    stages = tuple(StageNode(name=name, module=name, index=0, devices=(0,)) for name in ("vision", "llm"))
    graph = StageGraph(stages=stages, edges=StageGraph.chain(("vision", "llm")).edges)
    for make in (gpipe, one_f_one_b, colocated):
        timeline = simulate(make(graph, 4), Costs(update=0))
        assert timeline.makespan == 2 * 4 * (1 + 2)
        assert timeline.idle_share() == timeline.idle_share("vision") == 0


def test_idle_share_weighs_stages_by_their_devices():
    stages = (
        StageNode(name="small", module="small", index=0, devices=(0,)),
        StageNode(name="large", module="large", index=0, devices=(1, 2, 3)),
    )
    graph = StageGraph(stages=stages, edges=StageGraph.chain(("small", "large")).edges)
    timeline = simulate(gpipe(graph, 1), Costs(update=0, of={("small", Kind.FORWARD): 2, ("small", Kind.BACKWARD): 5}))
    assert timeline.makespan == 2 + 1 + 2 + 5
    assert timeline.idle_share("small") == pytest.approx(0.3)
    assert timeline.idle_share("large") == pytest.approx(0.7)
    assert timeline.idle_share() == pytest.approx((0.3 + 3 * 0.7) / 4)


def test_devices_of_an_independent_stage_run_their_pieces_when_they_are_free(make_shared):
    schedule = gpipe(make_shared(2), 2)
    costs = Costs(update=0, of={("vision", Kind.FORWARD): 2, ("vision", Kind.BACKWARD): 3})
    programs = [s for s in simulate(schedule, costs).spans if s.devices and s.action.kind is not Kind.UPDATE]
    by_device = {
        device: [(f"{s.stage}:{s.action}", s.start, s.end) for s in programs if device in s.devices]
        for device in (0, 1)
    }
    # Both run vision's F1 behind their first forward of llm, and whatever reads it waits for the later of them.
    assert by_device[0] == [
        *(("vision:F0", 0, 2), ("llm.0:F0", 2, 3), ("vision:F1", 3, 5), ("llm.0:F1", 6, 7)),
        *(("llm.0:B0", 10, 12), ("llm.0:B1", 12, 14), ("vision:B0", 14, 17), ("vision:B1", 17, 20)),
    ]
    assert by_device[1] == [
        *(("vision:F0", 0, 2), ("llm.1:F0", 3, 4), ("vision:F1", 4, 6), ("llm.1:F1", 7, 8)),
        *(("llm.1:B0", 8, 10), ("llm.1:B1", 10, 12), ("vision:B0", 12, 15), ("vision:B1", 15, 18)),
    ]
    timeline = simulate(schedule, costs)
    assert timeline.makespan == 20
    assert timeline.idle_share_of([0]) == timeline.idle_share("llm.0") == pytest.approx(1 - 16 / 20)
    assert timeline.idle_share() == pytest.approx(1 - (16 + 16) / 40)


def test_updates_start_together_after_the_last_backward():
    timeline = simulate(one_f_one_b("abc", 3), Costs(update=0.25))
    updates = [s for s in timeline.spans if s.action.kind is Kind.UPDATE]
    last = max(s.end for s in timeline.spans if s.action.kind is Kind.BACKWARD)
    assert {(s.start, s.end) for s in updates} == {(last, last + 0.25)}


def test_costs_of_one_stage_and_one_edge_replace_the_defaults():
    costs = Costs(of={("a", Kind.FORWARD): 7, ("a->b", Kind.TRANSFER): 3})
    lengths = {f"{s.stage} {s.action}": s.end - s.start for s in simulate(gpipe("ab", 1), costs).spans}
    assert lengths["a F0"] == 7
    assert lengths["b F0"] == 1
    assert lengths["a T0:a->b"] == lengths["b TB0:a->b"] == 3


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_costs_that_are_no_time_are_refused(value):
    with pytest.raises(ScheduleError, match="the cost of backward is"):
        Costs(backward=value)


def test_costs_for_unknown_names_are_refused():
    with pytest.raises(ScheduleError, match="the forward of 'lm', which the graph does not have; it has vision, llm"):
        simulate(gpipe(("vision", "llm"), 1), Costs(of={("lm", Kind.FORWARD): 1}))
    with pytest.raises(ScheduleError, match=r"the transfer of 'llm'.*it has vision->llm"):
        simulate(gpipe(("vision", "llm"), 1), Costs(of={("llm", Kind.TRANSFER): 1}))


def test_an_illegal_order_is_refused():
    graph = StageGraph.chain("ab")
    actions = (forward("b", 0), transfer(graph.edges[0], 0))
    with pytest.raises(ScheduleError, match="F0 of 'b' is dispatched before T0:a->b of 'a'"):
        simulate(Schedule(name="mine", graph=graph, microbatches=1, actions=actions))
