import re

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import Kind, StageGraph, gpipe
from hetjax.schedule.actions import backward, forward
from hetjax.schedule.order import total_order


def text(actions) -> list[str]:
    return [str(a) if a.kind is Kind.TRANSFER else f"{a.stage}:{a}" for a in actions]


def test_total_order_is_by_step_with_transfers_first():
    assert text(gpipe("ab", 2).actions) == [
        *("a:F0",),
        *("T0:a->b", "b:F0", "a:F1"),
        *("T1:a->b", "b:F1"),
        *("b:B0",),
        *("TB0:a->b", "b:B1", "a:B0"),
        *("TB1:a->b", "a:B1"),
        *("a:update", "b:update"),
    ]


def test_no_program_that_starts_with_a_producer_waits_behind_its_transfer():
    """On unit costs, nothing stands behind a transfer that could have been running while its tensor was made."""
    schedule = gpipe("abc", 4)
    texts = text(schedule.actions)
    assert texts.index("c:F0") < texts.index("T1:b->c") < texts.index("c:F1")
    assert texts.index("b:F1") < texts.index("T2:a->b") < texts.index("b:F2")


def test_orders_that_wait_for_each_other_are_refused_with_every_reason():
    graph = StageGraph.chain("ab")
    local = {
        "a": (forward("a", 0), backward("a", 0), forward("a", 1), backward("a", 1)),
        "b": (forward("b", 0), forward("b", 1), backward("b", 0), backward("b", 1)),
    }
    message = "stage 'a' at B0 waits for TB0:a->b of 'b'; stage 'b' at F1 waits for T1:a->b of 'a'"
    with pytest.raises(ScheduleError, match=re.escape(message)):
        total_order(graph, 2, local)


def test_a_phase_starts_after_the_one_before():
    graph = StageGraph.chain("ab")
    both = {name: [forward(name, index) for index in range(3)] for name in "ab"}
    mixed = text(total_order(graph, 3, both))
    apart = text(total_order(graph, 3, {"a": both["a"]}, {"b": both["b"]}))
    assert mixed.index("b:F0") < mixed.index("a:F2")
    assert [t for t in apart if ":F" in t] == ["a:F0", "a:F1", "a:F2", "b:F0", "b:F1", "b:F2"]


def test_ahead_bounds_how_far_a_stage_is_dispatched_before_its_reader():
    graph = StageGraph.chain("ab")
    local = {"a": [forward("a", i) for i in range(4)], "b": [forward("b", i) for i in range(4)]}
    texts = [t for t in text(total_order(graph, 4, local, ahead={"a": 1})) if ":F" in t]
    assert texts == ["a:F0", "b:F0", "a:F1", "b:F1", "a:F2", "b:F2", "a:F3", "b:F3"]
