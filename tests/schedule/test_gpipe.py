import inspect

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import check, gpipe


def test_all_forwards_come_before_all_backwards():
    assert [str(a) for a in gpipe(stages=("vision", "llm"), microbatches=2).on("llm")] == [
        *("F0", "F1", "B0", "B1", "update")
    ]


def test_passes_the_checker_on_every_graph(graph, microbatches):
    report = check(gpipe(graph, microbatches))
    assert report.peak_live == {stage.name: microbatches * stage.backward for stage in graph.stages}


def test_frozen_stages_run_forwards_only(named_graph):
    schedule = gpipe(named_graph("frozen-encoder"), 2)
    assert [str(a) for a in schedule.on("vision.0")] == ["F0", "F1"]
    assert [str(a) for a in schedule.on("llm.0")] == ["F0", "F1", "B0", "B1", "update"]
    assert not any(a.edge == "vision.1->llm.0" and a.backward for a in schedule.actions)


def test_a_frozen_stage_behind_one_that_trains_runs_backwards_without_an_update(named_graph):
    schedule = gpipe(named_graph("frozen-llm"), 2)
    assert [str(a) for a in schedule.on("llm.1")] == ["F0", "F1", "B0", "B1"]


def test_docstring_shows_what_the_function_makes(picture):
    for row in picture(gpipe("abc", 4)):
        assert row in inspect.getdoc(gpipe)


@pytest.mark.parametrize("microbatches", [0, -1])
def test_fewer_than_one_microbatch_is_refused(microbatches):
    with pytest.raises(ScheduleError, match=f"microbatches={microbatches}: .* at least 1"):
        gpipe(("vision", "llm"), microbatches)
