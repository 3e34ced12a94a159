"""What devices hold action by action, from numbers that are made up."""

import dataclasses

import pytest

from hetjax.fit.held import CROSSING, RESIDUALS, TEMPORARIES, CallBytes, LinkBytes, StageBytes, device_groups
from hetjax.schedule import StageEdge, StageGraph, StageNode, build_schedule, check
from hetjax.schedule.actions import Part, offload, reload
from hetjax.schedule.host_memory.offload import offload_modules

PERSISTENT = {"master weights": 1000, "compute weights": 500, "gradients": 2000, "optimizer state": 4000, "buffers": 8}
CALLS = {
    "forward": CallBytes(70, 30),
    "backward": CallBytes(200, 20),
    "reduce": CallBytes(5, 0),
    "update": CallBytes(9, 0),
}


def stage(**changes) -> StageBytes:
    return StageBytes(
        **{"persistent": PERSISTENT, "reduced": 600, "batch": 3, "residuals": 100, "calls": CALLS, **changes}
    )


def link(**changes) -> LinkBytes:
    return LinkBytes(**{"port": "x", "source": 10, "destination": 20, **changes})


def groups(schedule, stages=None, links=None):
    stages = stages or {each.name: stage() for each in schedule.graph.stages}
    links = links or {edge.name: link() for edge in schedule.graph.edges}
    return {group.stages: group for group in device_groups(schedule, stages, links)}


def chain(name, microbatches, stages=("a", "b")):
    return build_schedule(name, StageGraph.chain(stages), microbatches)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_residuals_are_held_for_as_many_microbatches_as_the_schedule_keeps_alive(name):
    schedule = chain(name, 6, ("a", "b", "c"))
    alive = check(schedule).peak_live
    for (only,), group in groups(schedule).items():
        most = max(moment.held.get(RESIDUALS, 0) for moment in group.moments)
        assert most == 100 * alive[only]


def test_a_moment_adds_what_a_program_takes_to_what_lasts_and_what_waits():
    schedule = chain("gpipe", 2)
    first = groups(schedule)[("a",)]
    by_action = {moment.action: moment for moment in first.moments if moment.stage == "a"}
    assert by_action["F0"].held == {**PERSISTENT, CROSSING: 2 * 3, TEMPORARIES: 100}
    # The other microbatch's input, the first one's output until it is sent, and its residuals.
    assert by_action["F1"].held[CROSSING] in (3, 13) and by_action["F1"].held[RESIDUALS] == 100
    assert first.peak.action == "B0" or first.peak.action == "B1"
    assert first.peak.total == sum(PERSISTENT.values()) + first.peak.held[RESIDUALS] + first.peak.held[CROSSING] + 220


def test_nothing_is_left_after_the_last_backward_but_what_lasts():
    for name in ("gpipe", "1f1b", "zero_bubble"):
        schedule = chain(name, 3)
        calls = {**CALLS, "backward_input": CallBytes(1, 1), "backward_weight": CallBytes(1, 1)}
        stages = {each.name: stage(pending=50, calls=calls) for each in schedule.graph.stages}
        for group in groups(schedule, stages).values():
            last = [moment for moment in group.moments if moment.action == "update"][-1]
            assert last.held[RESIDUALS] == 0 and last.held[CROSSING] == 0
            assert last.held["gradients"] == 600  # those of the whole batch, which the update reads


def test_colocated_stages_add_up_on_their_devices():
    nodes = tuple(StageNode(name=name, module=name, index=0, devices=(0, 1)) for name in ("a", "b"))
    graph = StageGraph(stages=nodes, edges=(StageEdge(name="a->b", source="a", destination="b"),))
    schedule = build_schedule("colocated", graph, 1)
    (group,) = groups(schedule).values()
    assert group.devices == (0, 1)
    assert group.moments[0].held["master weights"] == 2 * PERSISTENT["master weights"]
    assert max(moment.held.get(RESIDUALS, 0) for moment in group.moments) == 200


def test_devices_are_grouped_by_the_stages_that_they_hold():
    nodes = (
        StageNode(name="a", module="a", index=0, devices=(0, 1)),
        StageNode(name="b", module="b", index=0, devices=(1, 2, 3)),
    )
    graph = StageGraph(stages=nodes, edges=(StageEdge(name="a->b", source="a", destination="b"),))
    found = groups(build_schedule("gpipe", graph, 1))
    assert {stages: group.devices for stages, group in found.items()} == {
        ("a",): (0,),
        ("a", "b"): (1,),
        ("b",): (2, 3),
    }


def test_an_output_that_two_links_carry_is_held_once_until_the_last_has_it():
    nodes = tuple(StageNode(name=name, module=name, index=0) for name in ("a", "b", "c"))
    edges = tuple(
        StageEdge(name=f"{one}->{other}", source=one, destination=other)
        for one, other in (("a", "b"), ("a", "c"), ("b", "c"))
    )
    schedule = build_schedule("gpipe", StageGraph(stages=nodes, edges=edges), 1)
    first = groups(schedule)[("a",)]
    waiting = [moment.held.get(CROSSING, 0) for moment in first.moments if moment.action.startswith("T0:a")]
    assert waiting == [10, 10]
    apart = groups(schedule, links={edge.name: link(port=edge.name) for edge in edges})[("a",)]
    assert [moment.held.get(CROSSING, 0) for moment in apart.moments if moment.action.startswith("T0:a")] == [20, 10]


def test_blanks_of_a_boundary_lie_on_the_devices_of_their_end_all_step_long():
    schedule = chain("gpipe", 1)
    blank = {edge.name: link(blanks={"source": 7, "destination": 11}) for edge in schedule.graph.edges}
    for stages, more in ((("a",), 7), (("b",), 11)):
        without, with_blanks = groups(schedule)[stages], groups(schedule, links=blank)[stages]
        for one, other in zip(without.moments, with_blanks.moments, strict=True):
            assert other.total == one.total + more


def test_a_tensor_that_stays_where_it_is_counts_once_while_it_changes_its_mesh():
    nodes = tuple(StageNode(name=name, module=name, index=0, devices=(0,)) for name in ("a", "b"))
    graph = StageGraph(stages=nodes, edges=(StageEdge(name="a->b", source="a", destination="b"),))
    schedule = build_schedule("gpipe", graph, 1)
    taken = {}
    for shares in (False, True):
        (group,) = groups(schedule, links={"a->b": link(shares=shares)}).values()
        taken[shares] = next(moment.held[TEMPORARIES] for moment in group.moments if moment.action == "T0:a->b")
    assert taken == {False: 20, True: 0}


@pytest.mark.parametrize("pieces", [4, 1])
def test_a_window_is_held_in_pieces_until_each_is_sent_and_joined_when_the_last_gradient_is_back(pieces):
    """A device has a part of every microbatch of the window, or one of them alone: then it is the last to send."""
    nodes = (StageNode(name="a", module="a", index=0, window=4), StageNode(name="b", module="b", index=0))
    graph = StageGraph(stages=nodes, edges=(StageEdge(name="a->b", source="a", destination="b"),))
    schedule = build_schedule("1f1b", graph, 4)
    takes = {"cut": CallBytes(0, 40), "join": CallBytes(2, 40)} if pieces > 1 else {}
    found = groups(schedule, links={"a->b": link(source=40, pieces=pieces, **takes)})
    first = {moment.action: moment.held for moment in found[("a",)].moments if moment.stage == "a"}
    assert first["F0"][CROSSING] == 3  # the input of the whole window
    sent = [first[f"T{index}:a->b"][CROSSING] for index in range(4)]
    # Gradients of the first microbatches are back before the last are sent.
    assert sent == ([40, 30, 20 + 10, 10 + 20] if pieces > 1 else [40, 40, 40, 40])
    assert first["B0"][CROSSING] == 40
    if pieces > 1:
        # The output beside its pieces; their gradients beside the whole.
        assert first["F0 cut"][TEMPORARIES] == 40 + 40
        whole = next(m.held for m in found[("a",)].moments if m.action == "TB3:a->b join")
        assert (whole[CROSSING], whole[TEMPORARIES]) == (40, 42)
    second = [moment.held for moment in found[("b",)].moments if moment.action.startswith("F")]
    # Inputs of microbatches that have not run, and never more than the one that runs of the window.
    assert [held[CROSSING] for held in second] == [3 * left + 20 for left in (4, 3, 2, 1)]
    assert all(group.moments[-1].held[CROSSING] == 0 for group in found.values())


COPIED = {
    Part.WEIGHTS: {"master weights": 0, "compute weights": 500},
    Part.OPTIMIZER: {"master weights": 1000, "compute weights": 0, "optimizer state": 4000},
}


def offloaded_walk():
    """The moments of one device with an encoder and a language model, without offload and with it."""
    nodes = tuple(StageNode(name=name, module=name, index=0, devices=(0,)) for name in ("vision", "llm"))
    graph = StageGraph(stages=nodes, edges=(StageEdge(name="vision->llm", source="vision", destination="llm"),))
    plain = build_schedule("colocated", graph, 2)
    stages = {"vision": stage(copied=COPIED, late_gradients=True), "llm": stage()}
    found = {}
    for schedule in (plain, offload_modules(plain, ["vision"])):
        (group,) = groups(schedule, stages).values()
        found[schedule is plain] = {(moment.stage, moment.action): moment for moment in group.moments}
    return found[True], found[False]


def test_what_is_in_the_memory_of_the_host_is_not_on_the_device_and_the_other_way_round():
    plain, offloaded = offloaded_walk()
    for when in (("llm", "F1"), ("llm", "B1")):
        before, after = plain[when], offloaded[when]
        assert before.host == 0 and after.host == 500 + 5000 + 2 * 100
        assert before.total - after.total == after.host
        for part, moved in {"master weights": 1000, "compute weights": 500, "optimizer state": 4000}.items():
            assert before.held[part] - after.held[part] == moved
        assert before.held[RESIDUALS] - after.held[RESIDUALS] == 200
    last = offloaded["vision", "update"]
    assert last.host == 0 and last.held == plain["vision", "update"].held


def test_a_copy_out_frees_its_memory_after_the_program_beside_which_it_runs():
    plain, offloaded = offloaded_walk()
    # The optimizer's state leaves beside the first forward, weights and the last residuals beside the next program.
    first, second = ("vision", "F0"), ("vision", "F1")
    assert offloaded[first].total == plain[first].total
    assert plain[second].total - offloaded[second].total == 5000
    fourth = ("llm", "F0")
    assert plain[fourth].total - offloaded[fourth].total == 5000 + 100
    # A copy back counts from its dispatch on.
    assert offloaded["vision", "R0:residuals"].held[TEMPORARIES] == 100


def test_late_gradients_are_there_from_the_first_backward_on():
    plain, _ = offloaded_walk()
    assert plain["llm", "B1"].held["gradients"] == 2000
    assert plain["vision", "B0"].held["gradients"] == 600 + 2000


def test_all_outputs_that_are_cut_lie_there_until_the_last_is():
    nodes = (StageNode(name="a", module="a", index=0, window=4), StageNode(name="b", module="b", index=0))
    edges = tuple(StageEdge(name=f"a.{port}->b", source="a", destination="b") for port in "xy")
    schedule = build_schedule("1f1b", StageGraph(stages=nodes, edges=edges), 4)
    links = {edge.name: link(port=edge.name, source=40, pieces=4, cut=CallBytes(0, 40)) for edge in edges}
    cuts = [moment for moment in groups(schedule, links=links)[("a",)].moments if moment.action == "F0 cut"]
    # Two outputs and the pieces of the first; then the pieces of the second as well.
    assert [moment.held[CROSSING] + moment.held[TEMPORARIES] for moment in cuts] == [80 + 40, 80 + 80]


@pytest.mark.parametrize(("ran", "gone"), [(0, 0), (1, 5000)])
def test_what_leaves_is_there_until_a_program_ran_also_where_another_comes_back(ran, gone):
    schedule = chain("gpipe", 1)
    out, back = (make("a", Part.OPTIMIZER, None) for make in (offload, reload))
    actions = (out, *schedule.actions[:ran], back, *schedule.actions[ran:])
    walked = groups(dataclasses.replace(schedule, actions=actions), {"a": stage(copied=COPIED), "b": stage()})[("a",)]
    before, at = (
        next(each for each in walked.moments if each.action == name) for name in ("O:optimizer", "R:optimizer")
    )
    lasting = ("master weights", "optimizer state")
    assert sum(before.held[part] - at.held[part] for part in lasting) == gone
