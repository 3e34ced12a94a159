"""Copies to the memory of the host, added to schedules: where they stand, and that schedules stay what they were."""

import dataclasses
from collections import Counter

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import SCHEDULES, Costs, Kind, StageGraph, build_schedule, check, simulate
from hetjax.schedule.actions import HOST_COPIES, PROGRAMS, Part, offload, parts_used, reload
from hetjax.schedule.host_memory.idle_times import LEAST_PROGRAMS
from hetjax.schedule.host_memory.offload import offload_lines, offload_modules


def texts(schedule, *, stage="vision"):
    """The actions in order: those of a stage alone by their text, others with their stage before it, no transfers."""
    shown = [action for action in schedule.actions if action.kind not in (Kind.TRANSFER, Kind.UPDATE)]
    return " ".join(str(action) if action.stage == stage else f"{action.stage}:{action}" for action in shown)


def encoders(graph):
    return [module for module in dict.fromkeys(stage.module for stage in graph.stages) if module != graph.sink.module]


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_whatever_an_action_uses_is_on_the_devices_and_back_once_when_the_step_ends(name, graph, microbatches):
    try:
        plain = build_schedule(name, graph, microbatches)
    except ScheduleError:
        pytest.skip("the schedule refuses the graph")
    movable = []
    for module in encoders(graph):
        try:
            offload_modules(plain, [module])
        except ScheduleError as error:
            assert "nothing can leave" in str(error)
            continue
        movable.append(module)
    schedule = offload_modules(plain, movable)
    assert tuple(action for action in schedule.actions if action.kind not in HOST_COPIES) == plain.actions
    away, moved, programs = {}, Counter(), 0
    for action in schedule.actions:
        key = (action.stage, action.part, action.microbatch)
        programs += action.kind in PROGRAMS
        if action.kind is Kind.OFFLOAD:
            moved[key] += 1
            away[key] = programs
        elif action.kind is Kind.RELOAD:
            # Gone while enough runs to pay for it.
            assert programs - away.pop(key) >= LEAST_PROGRAMS
        else:
            assert not [each for each in parts_used(action) if (action.stage, *each) in away], action
    assert not away
    assert set(moved.values()) <= {1}
    assert {graph.stage(stage).module for stage, _, _ in moved} == set(movable)
    check(schedule)
    # Copies that take no time change nothing.
    costs = Costs(offload=0, reload=0)
    assert simulate(schedule, costs).makespan == pytest.approx(simulate(plain, costs).makespan)


def test_weights_are_away_between_forwards_and_backwards_and_residuals_from_a_forward_to_its_backward(named_graph):
    schedule = offload_modules(build_schedule("colocated", named_graph("shared-devices"), 2), ["vision"])
    assert texts(schedule) == (
        "O:optimizer F0 O0:residuals F1 O:weights O1:residuals llm.0:F0 llm.1:F0 llm.0:F1 llm.1:B0 llm.0:B0 llm.1:F1 "
        "llm.1:B1 R:weights R0:residuals llm.0:B1 R1:residuals B0 R:optimizer B1"
    )


def test_a_copy_back_does_not_run_beside_the_fullest_moment_of_the_language_model(named_graph):
    schedule = offload_modules(build_schedule("colocated", named_graph("one-device"), 1), ["vision"])
    assert texts(schedule) == (
        "O:optimizer F0 O:weights O0:residuals llm:F0 llm:B0 R:weights R0:residuals R:optimizer B0"
    )


def test_weights_stay_where_backwards_begin_before_the_last_forward_and_a_line_says_so():
    schedule = offload_modules(build_schedule("1f1b", StageGraph.chain(["vision", "llm"]), 4), ["vision"])
    assert Part.WEIGHTS not in {action.part for action in schedule.actions}
    (line,) = offload_lines(schedule, ["vision"])
    assert line == (
        "offload: vision: optimizer state until the update, residuals of 4 of 4 microbatches; weights stay, idle for "
        "fewer than 2 programs by schedule '1f1b'"
    )


def test_a_frozen_module_without_a_backward_has_its_weights_away_until_the_step_ends(named_graph):
    schedule = offload_modules(build_schedule("1f1b", named_graph("chunks-frozen-encoder"), 2), ["vision"])
    copies = [action for action in schedule.actions if action.kind in HOST_COPIES]
    assert copies == [offload("vision", Part.WEIGHTS), reload("vision", Part.WEIGHTS)]
    updates = [action for action in schedule.actions if action.kind is Kind.UPDATE]
    places = [schedule.actions.index(action) for action in (*copies, *updates)]
    assert places == sorted(places)
    assert list(offload_lines(schedule, ["vision"])) == ["offload: vision: weights after the forwards"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["llm"], "offload names module 'llm', which holds the loss: .* no idle time; name encoders \\(vision\\)"),
        (["audio"], "offload names module 'audio', which the graph lacks; its modules are vision, llm"),
    ],
)
def test_a_module_that_cannot_be_offloaded_is_refused(modules, message):
    with pytest.raises(ScheduleError, match=message):
        offload_modules(build_schedule("1f1b", StageGraph.chain(["vision", "llm"]), 4), modules)


def tampered(schedule, actions):
    return dataclasses.replace(schedule, actions=tuple(actions))


def test_a_schedule_that_uses_what_is_away_is_refused():
    good = offload_modules(build_schedule("gpipe", StageGraph.chain(["vision", "llm"]), 2), ["vision"])
    for part, user in ((Part.WEIGHTS, "B0"), (Part.OPTIMIZER, "update")):
        back = reload("vision", part)
        late = [*(action for action in good.actions if action != back), back]
        with pytest.raises(
            ScheduleError, match=f"{user} of stage 'vision' comes before R:{part.value} of stage 'vision'"
        ):
            check(tampered(good, late))
        with pytest.raises(ScheduleError, match=f"R:{part.value} of stage 'vision' is missing"):
            check(tampered(good, late[:-1]))
        with pytest.raises(ScheduleError, match=f"R:{part.value} of stage 'vision' occurs 2 times"):
            check(tampered(good, [*good.actions, back]))
    early = [offload("vision", Part.RESIDUALS, 0), *(a for a in good.actions if str(a) != "O0:residuals")]
    with pytest.raises(ScheduleError, match="O0:residuals of stage 'vision' comes before residuals of microbatch 0"):
        check(tampered(good, early))
    with pytest.raises(ScheduleError, match="O5:residuals of stage 'vision' comes before residuals of microbatch 5"):
        check(
            tampered(good, [*good.actions, offload("vision", Part.RESIDUALS, 5), reload("vision", Part.RESIDUALS, 5)])
        )


def test_a_part_that_a_stage_lacks_is_superfluous(named_graph):
    good = build_schedule("1f1b", named_graph("chunks-frozen-encoder"), 2)
    for wrong in (
        offload("vision", Part.OPTIMIZER),
        offload("vision", Part.RESIDUALS, 0),
        offload("llm.0", Part.RESIDUALS),
    ):
        with pytest.raises(ScheduleError, match="is superfluous; the stage has no such part"):
            check(tampered(good, [*good.actions, wrong]))


def test_copies_run_beside_programs_one_a_direction_and_readers_wait_for_them(named_graph):
    schedule = offload_modules(build_schedule("colocated", named_graph("shared-devices"), 2), ["vision"])
    costs = Costs(offload=0.5, reload=0.75, of={("vision", Kind.RELOAD, Part.WEIGHTS): 4.0})
    timeline = simulate(schedule, costs)
    of = {str(span.action): span for span in timeline.spans if span.stage == "vision"}
    assert of["O0:residuals"].start == of["F0"].end and of["F1"].start == of["F0"].end
    assert of["O:weights"].start == of["F1"].end and of["O1:residuals"].start == of["O:weights"].end
    assert of["R0:residuals"].start == of["R:weights"].end
    assert of["B0"].start == of["R0:residuals"].end == of["R:weights"].start + 4.75
    plain = simulate(build_schedule("colocated", named_graph("shared-devices"), 2), costs)
    assert plain.makespan < timeline.makespan
    assert timeline.idle_share() > plain.idle_share()


def test_what_is_moved_is_part_of_the_digest():
    good = offload_modules(build_schedule("gpipe", StageGraph.chain(["vision", "llm"]), 2), ["vision"])
    swapped = [
        dataclasses.replace(action, part=Part.OPTIMIZER) if action.part is Part.WEIGHTS else action
        for action in good.actions
    ]
    assert tampered(good, swapped).digest() != good.digest()
