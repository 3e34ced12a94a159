import dataclasses
import itertools
import re

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hetjax.errors import ScheduleError
from hetjax.schedule import (
    SCHEDULES,
    Action,
    Kind,
    Schedule,
    StageEdge,
    StageGraph,
    StageNode,
    build_schedule,
    check,
    gpipe,
    one_f_one_b,
    simulate,
    zero_bubble,
)
from hetjax.schedule.actions import backward, backward_input, backward_weight, forward, transfer, update


@pytest.fixture
def good() -> Schedule:
    return one_f_one_b(("vision", "llm"), 2)


def tampered(schedule: Schedule, actions) -> Schedule:
    return dataclasses.replace(schedule, actions=tuple(actions))


def refused(schedule: Schedule, message: str, **settings) -> None:
    with pytest.raises(ScheduleError, match=re.escape(message)):
        check(schedule, **settings)


def test_report_counts_actions_and_microbatches_held():
    report = check(gpipe(("vision", "llm"), 3))
    assert report.actions == 3 * 2 * 3 + 2
    assert report.queue == 3
    assert report.peak_live == {"vision": 3, "llm": 3}
    assert report.peak_queued == {"vision->llm": 1}


def test_a_missing_action_is_named(good):
    refused(tampered(good, [a for a in good.actions if a != backward("llm", 1)]), "B1 of stage 'llm' is missing")
    gone = transfer(good.graph.edges[0], 0, backward=True)
    refused(tampered(good, [a for a in good.actions if a != gone]), "TB0:vision->llm is missing")
    refused(tampered(good, good.actions[:-1]), "update of stage 'llm' is missing")


def test_an_action_twice_is_named(good):
    refused(tampered(good, [*good.actions, forward("llm", 0)]), "F0 of stage 'llm' occurs 2 times")


@pytest.mark.parametrize(
    "action",
    [
        forward("llm", 2),
        forward("audio", 0),
        Action(Kind.FORWARD, "llm"),
        Action(Kind.TRANSFER, "llm", 0, edge="vision->llm"),
        Action(Kind.UPDATE, "llm", 0),
    ],
)
def test_a_superfluous_action_is_named(good, action):
    refused(tampered(good, [*good.actions, action]), "is superfluous; a step of 2 microbatches")


def test_a_frozen_stage_may_not_run_backward(named_graph):
    schedule = gpipe(named_graph("frozen-encoder"), 1)
    refused(tampered(schedule, [*schedule.actions, backward("vision.1", 0)]), "B0 of stage 'vision.1' is superfluous")


@pytest.mark.parametrize(
    ("early", "late", "message"),
    [
        ("F0@llm", "T0:vision->llm", "F0 of stage 'llm' comes before T0:vision->llm"),
        ("T0:vision->llm", "F0@vision", "T0:vision->llm comes before F0 of stage 'vision'"),
        ("B0@vision", "TB0:vision->llm", "B0 of stage 'vision' comes before TB0:vision->llm"),
        ("B0@llm", "F0@llm", "B0 of stage 'llm' comes before F0 of stage 'llm'"),
        ("TB1:vision->llm", "B1@llm", "TB1:vision->llm comes before B1 of stage 'llm'"),
        ("update@llm", "B1@vision", "update of stage 'llm' comes before 1 more backwards of stage 'vision'"),
    ],
)
def test_an_action_before_its_need_is_named(good, early, late, message):
    """`early` is moved to directly before `late`, which it needs."""
    order = list(good.actions)
    texts = [str(a) if a.kind is Kind.TRANSFER else f"{a}@{a.stage}" for a in order]
    moved = order[texts.index(early)]
    order.remove(moved)
    order.insert(texts.index(late), moved)
    refused(tampered(good, order), message)


def test_reading_in_another_order_than_sent_needs_a_queue_of_two():
    """`b` reads microbatch 1 first: a sender with a queue of one cannot send it."""
    graph = StageGraph.chain("ab")
    edge = graph.edges[0]
    actions = [
        *(forward("a", 0), transfer(edge, 0), forward("a", 1), transfer(edge, 1)),
        *(forward("b", 1), forward("b", 0), backward("b", 1), backward("b", 0)),
        *(transfer(edge, 0, backward=True), transfer(edge, 1, backward=True), backward("a", 0), backward("a", 1)),
        *(update("a"), update("b")),
    ]
    schedule = Schedule(name="mine", graph=graph, microbatches=2, actions=tuple(actions))
    assert check(schedule, queue=2).peak_queued == {"a->b": 2}
    refused(
        schedule,
        "T1:a->b waits for room in the queue of edge 'a->b' (1 of 1 activations unread); "
        "F1 of stage 'b' waits for T1:a->b",
        queue=1,
    )


def test_stages_on_shared_devices_take_turns_in_the_dispatch_order(named_graph):
    """With one device for both, a sender that blocks also keeps the reader from running."""
    schedule = gpipe(named_graph("shared-devices"), 2)
    vision = [a for a in schedule.actions if a.stage == "vision" and not a.backward and a.kind is not Kind.BACKWARD]
    forwards_first = [*vision[:-1], *(a for a in schedule.actions if a not in vision[:-1])]
    assert check(tampered(schedule, forwards_first), queue=2)
    refused(tampered(schedule, forwards_first), "T1:vision->llm.0 waits for room in the queue", queue=1)


def test_a_split_microbatch_is_live_until_the_gradients_of_weights():
    report = check(zero_bubble(("vision", "llm"), 4))
    assert report.peak_live == {"vision": 2, "llm": 2}
    schedule = zero_bubble(("vision", "llm"), 4)
    late = [a for a in schedule.actions if a.kind is Kind.BACKWARD_WEIGHT]
    updates = [a for a in schedule.actions if a.kind is Kind.UPDATE]
    rest = [a for a in schedule.actions if a not in late and a not in updates]
    assert check(tampered(schedule, [*rest, *late, *updates])).peak_live == {"vision": 2, "llm": 4}


@pytest.mark.parametrize(
    ("early", "late", "message"),
    [
        ("W0", "I0", "W0 of stage 'llm' comes before I0 of stage 'llm'"),
        ("I0", "F0", "I0 of stage 'llm' comes before F0 of stage 'llm'"),
        ("TB0:vision->llm", "I0", "TB0:vision->llm comes before I0 of stage 'llm'"),
        ("update", "W1", "update of stage 'llm' comes before 1 more backwards of stage 'llm'"),
    ],
)
def test_a_part_of_a_backward_before_its_need_is_named(early, late, message):
    schedule = zero_bubble(("vision", "llm"), 2)
    order = [a for a in schedule.actions if a.stage == "llm"]
    moved = next(a for a in order if str(a) == early)
    place = next(a for a in order if str(a) == late)
    actions = [a for a in schedule.actions if a != moved]
    actions.insert(actions.index(place), moved)
    refused(tampered(schedule, actions), message)


def test_a_backward_is_whole_or_in_both_parts():
    schedule = zero_bubble(("vision", "llm"), 2)
    refused(tampered(schedule, [*schedule.actions, backward("llm", 0)]), "I0 of stage 'llm' is superfluous")
    for part in (backward_input("llm", 1), backward_weight("llm", 1)):
        left = [a for a in schedule.actions if a != part]
        refused(tampered(schedule, left), f"{part} of stage 'llm' is missing (1 in all)")


@pytest.mark.parametrize(
    ("graph", "stage", "why"),
    [
        ("chain-2", "a", "has no input that takes a gradient; use B0"),
        ("frozen-llm", "llm.1", "does not train; use B0"),
        ("frozen-encoder", "llm.0", "has no input that takes a gradient; use B0"),
    ],
)
def test_a_backward_of_one_part_cannot_be_split(named_graph, graph, stage, why):
    schedule = gpipe(named_graph(graph), 1)
    place = schedule.actions.index(backward(stage, 0))
    parts = (backward_input(stage, 0), backward_weight(stage, 0))
    split = (*schedule.actions[:place], *parts, *schedule.actions[place + 1 :])
    refused(
        tampered(schedule, split),
        f"I0 of stage '{stage}' splits a backward that has one part only, as stage '{stage}' {why}",
    )


def test_a_device_runs_its_piece_without_waiting_for_the_others():
    """Device 1 cannot send T1 before device 0 reads T0, which comes behind device 0's piece of vision's F1."""
    stages = (
        StageNode(name="vision", module="vision", index=0, devices=(0, 1), independent=True),
        StageNode(name="audio", module="audio", index=0, devices=(1,)),
        StageNode(name="llm", module="llm", index=0, devices=(0,)),
    )
    edges = (
        StageEdge(name="images", source="vision", destination="llm"),
        StageEdge(name="sounds", source="audio", destination="llm"),
    )
    graph = StageGraph(stages=stages, edges=edges)
    images, sounds = edges
    rest = gpipe(graph, 2).actions
    start = (
        *(forward("audio", 0), transfer(sounds, 0), forward("vision", 0), transfer(images, 0), forward("audio", 1)),
        *(transfer(sounds, 1), forward("vision", 1), forward("llm", 0), transfer(images, 1), forward("llm", 1)),
    )
    # Backwards one by one, so that they fit queues of one microbatch.
    end = []
    for index in range(2):
        end += [backward("llm", index), *(transfer(edge, index, backward=True) for edge in edges)]
        end += [backward("audio", index), backward("vision", index)]
    actions = (*start, *end, *(update(stage.name) for stage in stages))
    assert set(actions) == set(rest)
    schedule = Schedule(name="mine", graph=graph, microbatches=2, actions=actions)
    assert check(schedule, queue=1)
    together = StageGraph(stages=(dataclasses.replace(stages[0], independent=False), *stages[1:]), edges=edges)
    refused(
        dataclasses.replace(schedule, graph=together),
        "F1 of stage 'vision' waits for its turn on device 1 behind T1:sounds",
        queue=1,
    )


def test_a_queue_of_nothing_is_refused(good):
    refused(good, "queue=0: an edge must hold at least 1 microbatch", queue=0)


@st.composite
def stage_graphs(draw) -> StageGraph:
    """Any graph of up to six stages with one sink: any edges, modules, frozen parts and shared devices."""
    size = draw(st.integers(1, 6))
    pairs = [(i, j) for j in range(size) for i in range(j)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    edges += [(i, size - 1) for i in range(size - 1) if not any(a == i for a, _ in edges)]
    trains = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    backwards: list[bool] = []
    for index in range(size):
        backwards.append(trains[index] or any(backwards[a] for a, b in edges if b == index))
    devices = st.lists(st.integers(0, 4), unique=True, max_size=3).map(tuple)
    stages = tuple(
        StageNode(
            name=f"s{i}",
            module=f"m{i}",
            index=0,
            backward=backwards[i],
            update=trains[i],
            devices=draw(devices),
            independent=draw(st.booleans()),
        )
        for i in range(size)
    )
    crossings = (
        StageEdge(name=f"s{a}->s{b}", source=f"s{a}", destination=f"s{b}", backward=backwards[a]) for a, b in edges
    )
    return StageGraph(stages=stages, edges=tuple(crossings))


@settings(max_examples=80, deadline=None)
@given(graph=stage_graphs(), microbatches=st.integers(1, 5), name=st.sampled_from(sorted(SCHEDULES)))
def test_every_schedule_is_legal_on_any_graph(graph, microbatches, name):
    schedule = build_schedule(name, graph, microbatches)
    report = check(schedule)
    check(schedule, queue=max(report.peak_queued.values(), default=1))
    if name == "1f1b":
        assert all(report.peak_live[s.name] <= graph.depth(s.name) + 1 for s in graph.stages)
    spans = [span for span in simulate(schedule).spans if span.action.kind is not Kind.TRANSFER]
    for device in {device for stage in graph.stages for device in stage.devices}:
        here = sorted((s.start, s.end) for s in spans if device in s.devices)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(here))


@settings(max_examples=80, deadline=None)
@given(graph=stage_graphs(), data=st.data())
def test_a_schedule_without_one_of_its_actions_is_never_legal(graph, data):
    schedule = build_schedule(data.draw(st.sampled_from(sorted(SCHEDULES))), graph, 2)
    index = data.draw(st.integers(0, len(schedule.actions) - 1))
    actions = schedule.actions[:index] + schedule.actions[index + 1 :]
    refused(tampered(schedule, actions), "is missing")
