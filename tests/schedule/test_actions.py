import dataclasses
import os
import subprocess
import sys

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import Action, Kind, StageGraph, gpipe, one_f_one_b, zero_bubble
from hetjax.schedule.actions import backward, backward_input, backward_weight, forward, pieces, transfer, update


def test_actions_print_as_short_words():
    assert str(Action(Kind.FORWARD, "llm", 3)) == "F3"
    assert str(Action(Kind.BACKWARD, "llm", 12)) == "B12"
    assert str(backward_input("llm", 2)) == "I2"
    assert str(backward_weight("llm", 2)) == "W2"
    assert str(Action(Kind.UPDATE, "llm")) == "update"
    assert str(Action(Kind.TRANSFER, "vision", 0, edge="vision->llm")) == "T0:vision->llm"
    assert str(Action(Kind.TRANSFER, "llm", 0, edge="vision->llm", backward=True)) == "TB0:vision->llm"


def test_a_transfer_names_the_stage_that_its_tensor_comes_from():
    transfers = [a for a in gpipe(("vision", "llm"), 1).actions if a.kind is Kind.TRANSFER]
    assert [(a.stage, a.backward) for a in transfers] == [("vision", False), ("llm", True)]


def test_on_an_unknown_stage_raises():
    with pytest.raises(ScheduleError, match="unknown stage 'lm'"):
        gpipe(("vision", "llm"), 1).on("lm")


def test_digest_is_equal_for_equal_schedules_and_differs_for_others(named_graph):
    base = gpipe(StageGraph.chain("abc"), 3)
    assert base.digest() == gpipe(("a", "b", "c"), 3).digest()
    swapped = (base.actions[0], base.actions[2], base.actions[1], *base.actions[3:])
    others = [
        one_f_one_b("abc", 3),
        gpipe("abc", 4),
        gpipe("abd", 3),
        dataclasses.replace(base, name="other"),
        dataclasses.replace(base, actions=swapped),
        dataclasses.replace(base, actions=base.actions[:-1]),
        gpipe(named_graph("frozen-encoder"), 3),
        gpipe(named_graph("long-encoder"), 3),
        dataclasses.replace(zero_bubble("abc", 3), name="gpipe"),
        gpipe(named_graph("independent"), 3),
        gpipe(_dependent(named_graph("independent")), 3),
    ]
    digests = [base.digest(), *(other.digest() for other in others)]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)


def _dependent(graph: StageGraph) -> StageGraph:
    return dataclasses.replace(graph, stages=tuple(dataclasses.replace(s, independent=False) for s in graph.stages))


def test_what_reads_a_backward_waits_for_the_part_that_makes_it():
    schedule = zero_bubble("abc", 2)
    (first, second) = schedule.graph.edges
    assert schedule.split == {("b", 0), ("b", 1), ("c", 0), ("c", 1)}
    assert schedule.needs(backward_input("b", 1)) == (forward("b", 1), transfer(second, 1, backward=True))
    assert schedule.needs(backward_weight("b", 1)) == (backward_input("b", 1),)
    assert schedule.needs(transfer(first, 1, backward=True)) == (backward_input("b", 1),)
    assert gpipe("abc", 2).needs(transfer(first, 1, backward=True)) == (backward("b", 1),)
    assert set(schedule.needs(update("a"))) == {
        *(backward("a", index) for index in range(2)),
        *(backward_weight(stage, index) for stage in "bc" for index in range(2)),
    }


def test_only_programs_of_independent_stages_come_in_pieces(named_graph):
    graph = named_graph("independent")
    assert pieces(graph, forward("vision", 0)) == pieces(graph, backward("vision", 0)) == ((0,), (1,))
    assert pieces(graph, update("vision")) == ((0, 1),)
    assert pieces(_dependent(graph), forward("vision", 0)) == ((0, 1),)
    assert pieces(graph, transfer(graph.edges[0], 0)) == ((0, 1),)


def test_another_process_builds_the_same_order():
    program = "from hetjax.schedule import one_f_one_b; print(one_f_one_b('abcd', 8).digest())"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "12345", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.strip() == one_f_one_b("abcd", 8).digest()
