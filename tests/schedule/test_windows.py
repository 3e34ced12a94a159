"""Stages that take several of the loss's microbatches at once, in every schedule."""

import dataclasses
import re

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import SCHEDULES, Costs, Kind, StageGraph, StageNode, build_schedule, check, simulate
from hetjax.schedule.actions import backward, forward, transfer
from hetjax.schedule.draw import draw
from hetjax.schedule.trace import write_trace
from tests.harness.paths import ROOT

MICROBATCHES = 8


def windowed(graph: StageGraph, **windows: int) -> StageGraph:
    """The graph with windows of modules, 1 for those left out."""
    stages = (dataclasses.replace(stage, window=windows.get(stage.module, 1)) for stage in graph.stages)
    return dataclasses.replace(graph, stages=tuple(stages))


GRAPHS = {
    "fan-in-2": {"vision": 4, "audio": 2},
    "long-encoder": {"vision": 4},
    "frozen-encoder": {"vision": 2},
    "frozen-llm": {"vision": 8},
    "uneven": {"vision": 8, "audio": 4},
    "chain-4": {"a": 8, "b": 4, "c": 2},
    "skip": {"a": 4, "b": 2, "c": 2},
    "shared-devices": {"vision": 4},
    "overlapping": {"vision": 2, "audio": 8},
    "independent": {"vision": 4},
    "independent-frozen": {"vision": 2},
    "independent-long": {"vision": 4, "audio": 8},
    "one-device": {"vision": 8},
    "chunks-fan-in": {"vision": 4, "audio": 2},
    "chunks-frozen-encoder": {"vision": 4},
    "chunks-long-encoder": {"vision": 2},
}


@pytest.fixture(params=GRAPHS)
def window_graph(request, named_graph) -> StageGraph:
    """Each graph with windows of its modules."""
    return windowed(named_graph(request.param), **GRAPHS[request.param])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_runs_windows_to_the_end(name, window_graph):
    schedule = build_schedule(name, window_graph, MICROBATCHES)
    report = check(schedule)
    for stage in window_graph.stages:
        own = [action.microbatch for action in schedule.on(stage.name) if action.kind is Kind.FORWARD]
        assert own == list(range(MICROBATCHES // stage.window))
        assert report.peak_live[stage.name] <= MICROBATCHES // stage.window
    assert simulate(schedule).makespan > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_backward_comes_behind_all_gradients_of_its_window(name, window_graph):
    schedule = build_schedule(name, window_graph, MICROBATCHES)
    place = {action: at for at, action in enumerate(schedule.actions)}
    for action in schedule.actions:
        if action.kind not in (Kind.BACKWARD, Kind.BACKWARD_INPUT):
            continue
        window = window_graph.stage(action.stage).window
        first = action.microbatch * window
        for edge in window_graph.outputs(action.stage):
            reader = window_graph.stage(edge.destination).window
            held = {loss // reader for loss in range(first, first + window)}
            gradients = [place[transfer(edge, index, backward=True)] for index in held if edge.backward]
            assert all(at < place[action] for at in gradients)
            assert len(gradients) == (window // reader if edge.backward else 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_more_than_one_microbatch_of_a_window_waits_at_its_reader(name, window_graph):
    """Beside the first of the next window: what is further ahead stays where it was made."""
    schedule = build_schedule(name, window_graph, MICROBATCHES)
    waiting = dict.fromkeys((edge.name for edge in window_graph.edges), 0)
    for action in schedule.actions:
        if (
            action.kind is Kind.TRANSFER
            and not action.backward
            and window_graph.ratio(window_graph.edge(action.edge)) > 1
        ):
            waiting[action.edge] += 1
            windows = MICROBATCHES // window_graph.stage(action.stage).window
            assert waiting[action.edge] <= windows
        if action.kind is Kind.FORWARD:
            for edge in window_graph.inputs(action.stage):
                waiting[edge.name] -= 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_on_an_edge_that_says_so_a_window_crosses_at_once(name, window_graph):
    """Nothing runs between its transfers, and every schedule still runs to its end."""
    edges = tuple(dataclasses.replace(edge, at_once=window_graph.ratio(edge) > 1) for edge in window_graph.edges)
    graph = dataclasses.replace(window_graph, edges=edges)
    schedule = build_schedule(name, graph, MICROBATCHES)
    check(schedule)
    for edge in graph.edges:
        if edge.at_once:
            for gradients in {False, edge.backward}:
                places = [
                    place
                    for place, action in enumerate(schedule.actions)
                    if action.edge == edge.name and action.backward == gradients
                ]
                ratio = graph.ratio(edge)
                for window in range(0, len(places), ratio):
                    between = schedule.actions[places[window] : places[window + ratio - 1]]
                    assert {action.kind for action in between} == {Kind.TRANSFER}


def test_a_window_of_one_microbatch_changes_nothing(graph, microbatches):
    for name in ("1f1b", "zero_bubble"):
        assert all(graph.lead(stage.name) == graph.depth(stage.name) + 1 for stage in graph.stages)
        assert build_schedule(name, windowed(graph), microbatches) == build_schedule(name, graph, microbatches)


def test_the_page_draws_what_a_window_looks_like(make_pipeline):
    graph = windowed(make_pipeline(2, encoders=["vision"]), vision=2)
    costs = Costs(backward=1, update=0, of={("vision", Kind.FORWARD): 2, ("vision", Kind.BACKWARD): 2})
    timeline = simulate(build_schedule("1f1b", graph, 6), costs)
    rows = {stage.name: [".."] * int(timeline.makespan) for stage in graph.stages}
    for span in timeline.spans:
        if span.action.kind in (Kind.FORWARD, Kind.BACKWARD):
            start, end = int(span.start), int(span.end)
            rows[span.stage][start:end] = [str(span.action)] * (end - start)
    page = (ROOT / "docs" / "schedules.md").read_text()
    for name, row in rows.items():
        assert f"\n{name:7} {' '.join(row)}\n" in page


def test_1f1b_keeps_few_windows_however_many_there_are():
    pipeline = ["vision", *(f"llm.{i}" for i in range(4))]
    nodes = tuple(
        StageNode(name=name, module=name.partition(".")[0], index=max(0, i - 1)) for i, name in enumerate(pipeline)
    )
    graph = StageGraph(stages=nodes, edges=StageGraph.chain(pipeline).edges)
    kept = {
        window: check(build_schedule("1f1b", windowed(graph, vision=window), 32)).peak_live["vision"]
        for window in (1, 2, 4, 8, 16, 32)
    }
    # 1 + ceil((window - 1 + 4) / window), where the language model warms up with 4.
    assert kept == {1: 5, 2: 4, 4: 3, 8: 3, 16: 2, 32: 1}


def test_pictures_of_windows_in_the_paper_s_three_phases():
    """One window of all: every forward of the encoder, the language model's own pipeline, every backward."""
    graph = windowed(StageGraph.chain(["vision", "llm"]), vision=4)
    schedule = build_schedule("1f1b", graph, 4)
    assert [str(action) for action in schedule.on("vision")] == ["F0", "B0", "update"]
    assert [str(a) for a in schedule.on("llm")] == [*(f"{kind}{i}" for i in range(4) for kind in "FB"), "update"]
    costs = Costs(of={("vision", Kind.FORWARD): 4.0, ("vision", Kind.BACKWARD): 8.0}, update=0)
    assert simulate(schedule, costs).makespan == 4 + 4 * (1 + 2) + 8


@pytest.mark.parametrize("name", ["1f1b", "interleaved_1f1b"])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_a_reader_does_not_wait_for_the_next_window(name, stages, make_pipeline):
    """The encoder, as long as a stage, makes a window while the language model works on the one before."""
    for window in (1, 2, 4):
        graph = windowed(make_pipeline(stages, encoders=["vision"]), vision=window)
        of = {("vision", Kind.FORWARD): 1.0 * window, ("vision", Kind.BACKWARD): 2.0 * window}
        timeline = simulate(build_schedule(name, graph, 16), Costs(of=of, update=0))
        # The first window's forward and the last one's backward have nothing to overlap with.
        assert timeline.makespan == 3 * window + 3 * (16 + stages - 1)


def test_queues_hold_gradients_of_whole_windows():
    schedule = build_schedule("1f1b", windowed(StageGraph.chain(["vision", "llm"]), vision=4), MICROBATCHES)
    assert check(schedule, queue=2).peak_queued == {"vision->llm": 4}


def test_an_early_backward_is_refused_with_what_it_waits_for():
    schedule = build_schedule("1f1b", windowed(StageGraph.chain(["vision", "llm"]), vision=2), 2)
    order = list(schedule.actions)
    order.remove(backward("vision", 0))
    order.insert(order.index(transfer(schedule.graph.edges[0], 1, backward=True)), backward("vision", 0))
    with pytest.raises(ScheduleError, match="B0 of stage 'vision' comes before TB1:vision->llm"):
        check(dataclasses.replace(schedule, actions=tuple(order)))


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (
            {"b": 2},
            "edge 'a->b': 'a' takes 1 microbatches at once and 'b' 2; a stage takes a multiple of what its readers",
        ),
        ({"a": 3, "b": 2}, "edge 'a->b': 'a' takes 3 microbatches at once and 'b' 2"),
        ({"a": 2, "b": 2, "c": 2}, "stage 'c' holds the loss and has window=2"),
        ({"a": 0}, "stage 'a': window=0; give 1 microbatch or more"),
    ],
)
def test_windows_that_do_not_fit_are_refused(windows, message):
    with pytest.raises(ScheduleError, match=re.escape(message)):
        windowed(StageGraph.chain("abc"), **windows)


def test_stages_of_a_module_share_a_window(named_graph):
    first, *others = named_graph("long-encoder").stages
    with pytest.raises(ScheduleError, match=r"stages 'vision.0' and 'vision.1' of module 'vision' take 2 and 1 micro"):
        dataclasses.replace(named_graph("long-encoder"), stages=(dataclasses.replace(first, window=2), *others))


def test_microbatches_that_a_window_does_not_divide_are_refused():
    with pytest.raises(
        ScheduleError, match=r"microbatches=6: stage 'a' takes 4 of them at once, which does not divide"
    ):
        build_schedule("1f1b", windowed(StageGraph.chain("ab"), a=4), 6)


def test_pictures_and_traces_show_which_microbatches_a_window_holds(tmp_path):
    schedule = build_schedule("1f1b", windowed(StageGraph.chain(["vision", "llm"]), vision=4), MICROBATCHES)
    assert schedule.label == "1f1b, 8 microbatches (vision 2)"
    draw(simulate(schedule), tmp_path / "windows.svg")
    comments = re.findall(r"<!-- (.*?) -->", (tmp_path / "windows.svg").read_text())
    assert {"0-3", "4-7", "7", schedule.label} <= set(comments)
    write_trace(simulate(schedule), tmp_path / "windows.json")
    text = (tmp_path / "windows.json").read_text()
    assert text.count('"window": 4') == 4  # two forwards, two backwards


def test_order_of_programs_with_a_window_on_shared_devices(named_graph):
    schedule = build_schedule("colocated", windowed(named_graph("shared-devices"), vision=8), MICROBATCHES)
    programs = [action for action in schedule.actions if action.kind is not Kind.TRANSFER]
    assert programs[0] == forward("vision", 0)
    assert programs[-4] == backward("vision", 0)
