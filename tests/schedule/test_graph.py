import dataclasses
import re

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import StageEdge, StageGraph, StageNode


def node(name: str, **settings) -> StageNode:
    return StageNode(name=name, module=name, index=0, **settings)


def edge(source: str, destination: str, **settings) -> StageEdge:
    return StageEdge(**{"name": f"{source}->{destination}", "source": source, "destination": destination} | settings)


def test_chain_joins_each_stage_to_the_next():
    graph = StageGraph.chain(("vision", "llm", "head"))
    assert [(e.name, e.source, e.destination) for e in graph.edges] == [
        ("vision->llm", "vision", "llm"),
        ("llm->head", "llm", "head"),
    ]
    assert [stage.module for stage in graph.stages] == ["vision", "llm", "head"]
    assert graph.sink.name == "head"


def test_depth_is_the_longest_way_to_the_loss(named_graph):
    skip = named_graph("skip")
    assert [skip.depth(name) for name in "abcd"] == [3, 2, 1, 0]
    uneven = named_graph("uneven")
    assert {stage.name: uneven.depth(stage.name) for stage in uneven.stages} == {
        "vision.0": 3,
        "vision.1": 2,
        "audio": 1,
        "llm.0": 1,
        "llm.1": 0,
    }


def test_inputs_and_outputs_are_the_edges_at_a_stage(named_graph):
    graph = named_graph("fan-in-2")
    assert [e.source for e in graph.inputs("llm.0")] == ["vision", "audio"]
    assert [e.destination for e in graph.outputs("llm.0")] == ["llm.1"]
    assert graph.outputs("llm.1") == ()


def test_a_backward_splits_where_a_stage_trains_and_gives_a_gradient_to_an_input(named_graph):
    splits = {
        "long-encoder": {"vision.1", "llm.0", "llm.1"},
        "frozen-encoder": {"llm.1"},
        "frozen-llm": {"vision.1"},
        "all-frozen": set(),
        "fan-in-1": {"llm.0"},
    }
    for name, expected in splits.items():
        graph = named_graph(name)
        assert {stage.name for stage in graph.stages if graph.splits(stage.name)} == expected


def test_stages_with_equal_devices_share_a_mesh():
    stages = (node("a", devices=(0, 1)), node("b", devices=(1,)), node("c", devices=(0, 1)), node("d"), node("e"))
    edges = tuple(edge(x, y) for x, y in ("ab", "bc", "cd", "de"))
    meshes = StageGraph(stages=stages, edges=edges).meshes
    assert [[stage.name for stage in mesh] for mesh in meshes] == [["a", "c"], ["b"], ["d"], ["e"]]


@pytest.mark.parametrize(
    ("stages", "edges", "message"),
    [
        ((), (), "at least one stage"),
        ((node("a"), node("a")), (), "stage name 'a' is used 2 times"),
        ((node("a"), dataclasses.replace(node("b"), module="a")), (edge("a", "b"),), "('a', 0) is used 2 times"),
        ((node("a"), node("b")), (edge("a", "b"), edge("a", "b")), "edge name 'a->b' is used 2 times"),
        ((node("a"),), (edge("a", "lm"),), "its destination 'lm' is not a stage; the stages are a"),
        ((node("a"),), (edge("eyes", "a"),), "its source 'eyes' is not a stage"),
        ((node("a"), node("b")), (edge("a", "b"), edge("b", "a")), "form a cycle"),
        ((node("a"),), (edge("a", "a"),), "form a cycle"),
        ((node("b"), node("a")), (edge("a", "b"),), "list the stages in topological order, for example a, b"),
        ((node("a"), node("b"), node("c")), (edge("a", "c"),), "but b, c have none"),
        ((node("a", backward=False),), (), "'a' is updated (update=True) but has no backward"),
        (
            (node("a", backward=False, update=False), node("b")),
            (edge("a", "b"),),
            "edge 'a->b' carries a gradient (backward=True), but stage 'a' has no backward",
        ),
        ((node("a"), node("b")), (edge("a", "b", backward=False),), "stage 'a' has a backward, but no gradient"),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused(stages, edges, message):
    with pytest.raises(ScheduleError, match=re.escape(message)):
        StageGraph(stages=stages, edges=edges)


def test_unknown_names_are_answered_with_the_known_ones():
    graph = StageGraph.chain(("vision", "llm"))
    with pytest.raises(ScheduleError, match="unknown stage 'lm'; the stages are vision, llm"):
        graph.depth("lm")
    with pytest.raises(ScheduleError, match="unknown edge 'x'; the edges are vision->llm"):
        graph.edge("x")
