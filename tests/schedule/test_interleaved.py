import dataclasses
import inspect
import itertools

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import Costs, Kind, StageGraph, check, interleaved_1f1b, one_f_one_b, simulate


def on_mesh(schedule, *stages: str) -> str:
    """The programs of a mesh as "F0.1" for microbatch 0 of chunk 1."""
    programs = (a for a in schedule.actions if a.stage in stages and a.kind in (Kind.FORWARD, Kind.BACKWARD))
    return " ".join(f"{a}.{stages.index(a.stage)}" for a in programs)


def test_meshes_take_up_their_chunks_in_turn(make_pipeline):
    """The order of figure 4 of Narayanan et al. 2021, for two devices with two chunks each."""
    schedule = interleaved_1f1b(make_pipeline(2, 2), 4)
    assert on_mesh(schedule, "llm.0", "llm.2") == (
        "F0.0 F1.0 F0.1 F1.1 F2.0 B0.1 F3.0 B1.1 F2.1 B0.0 F3.1 B1.0 B2.1 B3.1 B2.0 B3.0"
    )
    assert on_mesh(schedule, "llm.1", "llm.3") == (
        "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 F2.0 B0.0 F3.0 B1.0 F2.1 B2.1 F3.1 B3.1 B2.0 B3.0"
    )


@pytest.mark.parametrize("costs", [Costs(update=0), Costs(forward=3, backward=4, update=0)])
@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_idle_share_of_equal_stages_is_the_closed_form(make_pipeline, stages, chunks, microbatches, costs):
    timeline = simulate(interleaved_1f1b(make_pipeline(stages, chunks), microbatches), costs)
    # Also where the stages do not divide the microbatches.
    slots = chunks * max(microbatches, stages) + min(microbatches, stages) - 1
    assert timeline.makespan == pytest.approx(slots * (costs.forward + costs.backward))
    assert timeline.idle_share() == pytest.approx(1 - chunks * microbatches / slots, abs=1e-9)


@pytest.mark.parametrize(
    "name", ["chain-4", "fan-in-3", "long-encoder", "frozen-encoder", "skip", "uneven", "shared-devices"]
)
def test_with_one_chunk_a_mesh_it_is_1f1b(named_graph, name, microbatches):
    graph = named_graph(name)
    assert interleaved_1f1b(graph, microbatches).actions == one_f_one_b(graph, microbatches).actions


def test_passes_the_checker_on_every_graph(graph, microbatches):
    report = check(interleaved_1f1b(graph, microbatches))
    assert all(report.peak_live[stage.name] <= microbatches * stage.backward for stage in graph.stages)


@pytest.mark.parametrize("microbatches", range(1, 18))
@pytest.mark.parametrize(("stages", "chunks"), [(2, 2), (3, 3), (4, 2), (5, 2), (8, 2)])
def test_any_number_of_microbatches_runs_to_its_end(make_pipeline, stages, chunks, microbatches):
    graph = make_pipeline(stages, chunks, ("vision", "audio"))
    assert check(interleaved_1f1b(graph, microbatches))


@pytest.mark.parametrize(("stages", "chunks", "microbatches"), [(2, 2, 8), (3, 2, 6), (4, 2, 16), (4, 3, 8)])
def test_a_mesh_keeps_at_most_its_warm_up_alive(make_pipeline, stages, chunks, microbatches):
    schedule = interleaved_1f1b(make_pipeline(stages, chunks), microbatches)
    for rank in range(stages):
        mine = {f"llm.{rank + stages * chunk}" for chunk in range(chunks)}
        steps = [(a.kind is Kind.FORWARD) - (a.kind is Kind.BACKWARD) for a in schedule.actions if a.stage in mine]
        assert max(itertools.accumulate(steps)) == 2 * (stages - 1 - rank) + (chunks - 1) * stages + 1


def test_an_encoder_runs_one_microbatch_ahead_of_what_its_reader_has_in_flight(make_pipeline):
    schedule = interleaved_1f1b(make_pipeline(2, 2, ("vision",)), 8)
    # The first backward of llm.0 comes behind its fourth forward, as above.
    assert " ".join(map(str, schedule.on("vision"))).startswith("F0 F1 F2 F3 F4 B0")


def test_stages_that_do_not_come_around_in_turn_are_refused(make_pipeline):
    good = make_pipeline(2, 2)
    stages = tuple(dataclasses.replace(s, devices=(d,)) for s, d in zip(good.stages, (0, 1, 1, 0), strict=True))
    back_and_forth = StageGraph(stages=stages, edges=good.edges)
    with pytest.raises(ScheduleError, match=r"'llm' has 4 stages on p=2 meshes.*'llm.2' is on devices \(1,\).*'1f1b'"):
        interleaved_1f1b(back_and_forth, 4)
    uneven = StageGraph(stages=good.stages[:3], edges=good.edges[:2])
    with pytest.raises(ScheduleError, match="'llm' has 3 stages on p=2 meshes; it takes v"):
        interleaved_1f1b(uneven, 4)


def test_docstring_shows_what_the_function_makes(make_pipeline, picture):
    for row in picture(interleaved_1f1b(make_pipeline(2, 2), 4)):
        assert row in inspect.getdoc(interleaved_1f1b)
