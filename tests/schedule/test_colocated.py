import inspect
import itertools

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import Kind, StageEdge, StageGraph, StageNode, check, colocated


def test_passes_the_checker_on_every_graph(graph, microbatches):
    report = check(colocated(graph, microbatches))
    for stage in graph.stages:
        alive = microbatches if stage.module != graph.sink.module else min(microbatches, graph.depth(stage.name) + 1)
        assert report.peak_live[stage.name] == alive * stage.backward


def test_encoder_work_never_interleaves_with_the_language_model(graph, microbatches):
    language = graph.sink.module
    programs = [a for a in colocated(graph, microbatches).actions if a.kind in (Kind.FORWARD, Kind.BACKWARD)]
    turns = [
        (is_language, {a.kind for a in group})
        for is_language, group in itertools.groupby(programs, lambda a: graph.stage(a.stage).module == language)
    ]
    encoders_run = any(stage.module != language for stage in graph.stages)
    encoders_train = any(stage.backward for stage in graph.stages if stage.module != language)
    expected = [False] * encoders_run + [True] + [False] * encoders_train
    assert [is_language for is_language, _ in turns] == expected
    if encoders_run:
        assert turns[0][1] == {Kind.FORWARD}
    if encoders_train:
        assert turns[-1][1] == {Kind.BACKWARD}


def test_docstring_shows_what_the_function_makes(named_graph, picture):
    for row in picture(colocated(named_graph("shared-devices"), 3)):
        assert row in inspect.getdoc(colocated)


def test_short_queues_deadlock_and_the_checker_says_where():
    with pytest.raises(ScheduleError, match="room in the queue of edge 'vision->llm'"):
        check(colocated(("vision", "llm"), 4), queue=1)


def test_an_encoder_that_reads_from_the_language_model_is_refused():
    stages = [("llm.0", "llm", 0), ("adapter", "adapter", 0), ("llm.1", "llm", 1)]
    graph = StageGraph(
        stages=tuple(StageNode(name=name, module=module, index=index) for name, module, index in stages),
        edges=(
            StageEdge(name="out", source="llm.0", destination="adapter"),
            StageEdge(name="back", source="adapter", destination="llm.1"),
        ),
    )
    with pytest.raises(ScheduleError, match=r"colocated: edge 'out' leads from 'llm'.*use '1f1b'"):
        colocated(graph, 2)
