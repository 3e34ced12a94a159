import inspect
import os
import subprocess
import sys

import pytest

from hetjax.errors import ScheduleError
from hetjax.schedule import (
    Costs,
    Kind,
    Schedule,
    StageGraph,
    bubble_fill,
    build_schedule,
    check,
    colocated,
    interleaved_1f1b,
    one_f_one_b,
    simulate,
)
from hetjax.schedule.actions import backward, forward, needs, sends


def encoder_costs(share: float, **settings) -> Costs:
    """An encoder whose programs take a share of what a stage's do."""
    of = {("vision", Kind.FORWARD): share, ("vision", Kind.BACKWARD): 2 * share}
    return Costs(update=0, of=of, **settings)


def on_meshes(schedule, module: str) -> dict:
    """The programs of a module on each mesh, in order."""
    found: dict = {}
    for action in schedule.actions:
        if action.kind in (Kind.FORWARD, Kind.BACKWARD) and schedule.graph.stage(action.stage).module == module:
            found.setdefault(schedule.graph.occupies(action.stage), []).append(action)
    return found


def test_passes_the_checker_on_every_graph_and_keeps_the_order_of_the_pipeline(graph, microbatches):
    schedule = bubble_fill(graph, microbatches)
    assert check(schedule).actions == len(one_f_one_b(graph, microbatches).actions)
    sink = graph.sink.module
    known = [make(graph, microbatches) for make in (interleaved_1f1b, one_f_one_b)]
    assert any(on_meshes(schedule, sink) == on_meshes(other, sink) for other in known)


def test_never_takes_longer_than_what_it_replaces(graph, microbatches):
    costs = Costs(transfer=0.1)
    mine = simulate(bubble_fill(graph, microbatches, costs), costs).makespan
    for make in (one_f_one_b, interleaved_1f1b, colocated):
        assert mine <= simulate(make(graph, microbatches), costs).makespan


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("microbatches", [4, 8])
@pytest.mark.parametrize("stages", [2, 4])
def test_an_encoder_of_independent_devices_fills_the_bubbles(make_shared, stages, microbatches, share):
    graph, costs = make_shared(stages), encoder_costs(share)
    mine, plain, turns = (
        simulate(schedule, costs)
        for schedule in (
            bubble_fill(graph, microbatches, costs),
            one_f_one_b(graph, microbatches),
            colocated(graph, microbatches),
        )
    )
    work = 3 * microbatches * (1 + share)
    # The bubble of the pipeline alone is 3 (p - 1); the first piece before it and the last behind it cannot be in it.
    assert mine.makespan >= max(work, 3 * (microbatches + stages - 1) + 3 * share) - 1e-9
    assert mine.makespan < turns.makespan - 0.4 * stages * share
    assert mine.idle_share() < 0.85 * min(plain.idle_share(), turns.idle_share())


def every_order(graph, streams: list[list], run: list):
    """All legal orders of some programs, of which each stream keeps its own."""
    if not any(streams):
        yield run
    for stream in streams:
        if stream and all(program in run for program in programs_needed(graph, stream[0])):
            yield from every_order(graph, [s[1:] if s is stream else s for s in streams], [*run, stream[0]])


def programs_needed(graph, action) -> list:
    """What a program waits for, where transfers are not distinguished from what they carry."""
    needed = needs(graph, 2, action)
    return [need if need.kind is not Kind.TRANSFER else needs(graph, 2, need)[0] for need in needed]


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0, 2.0])
def test_no_order_of_a_small_case_takes_less_time(make_shared, share):
    graph, costs = make_shared(2), encoder_costs(share)
    pipeline = [list(one_f_one_b(graph, 2).on(name)[:-1]) for name in ("llm.0", "llm.1")]
    encoder = [[make("vision", index) for index in range(2)] for make in (forward, backward)]
    orders = list(every_order(graph, pipeline + encoder, []))
    lengths = []
    for order in orders:
        actions = [action for program in order for action in (program, *sends(graph, program, ()))]
        lengths.append(simulate(Schedule(name="mine", graph=graph, microbatches=2, actions=actions), costs).makespan)
    assert len(orders) > 20
    assert simulate(bubble_fill(graph, 2, costs), costs).makespan == min(lengths) < max(lengths)


@pytest.mark.parametrize("stages", [2, 4])
def test_an_encoder_whose_devices_run_together_is_no_worse_off_than_colocated(make_shared, stages):
    graph, costs = make_shared(stages, independent=False), encoder_costs(0.5)
    schedule = bubble_fill(graph, 8, costs)
    check(schedule)
    assert simulate(schedule, costs).makespan <= simulate(colocated(graph, 8), costs).makespan


def test_without_an_encoder_it_is_1f1b(named_graph):
    chain, chunks = StageGraph.chain("a"), named_graph("chunks-2x2")
    assert bubble_fill(chain, 5).actions == one_f_one_b(chain, 5).actions
    assert bubble_fill(chunks, 5).actions == interleaved_1f1b(chunks, 5).actions


def test_the_order_follows_the_costs(make_shared):
    graph = make_shared(4)
    cheap, dear = encoder_costs(0.1), encoder_costs(2.0)
    for own, other in ((cheap, dear), (dear, cheap)):
        mine, strange = bubble_fill(graph, 6, own), bubble_fill(graph, 6, other)
        assert simulate(mine, own).makespan < simulate(strange, own).makespan
        assert build_schedule("bubble_fill", graph, 6, own) == mine


def test_another_process_finds_the_same_order(make_shared):
    program = (
        "from hetjax.schedule import bubble_fill, StageGraph, StageNode, StageEdge\n"
        "n = [StageNode(name='vision', module='vision', index=0, devices=(0, 1), independent=True)]\n"
        "n += [StageNode(name=f'llm.{i}', module='llm', index=i, devices=(i,)) for i in range(2)]\n"
        "e = [StageEdge(name=f'{a.name}->{b.name}', source=a.name, destination=b.name) for a, b in zip(n, n[1:])]\n"
        "print(bubble_fill(StageGraph(stages=tuple(n), edges=tuple(e)), 6).digest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "12345", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.strip() == bubble_fill(make_shared(2), 6).digest()


def test_transfers_stand_between_what_makes_and_what_needs_them(make_shared):
    """The activation of a microbatch is sent before any program that starts when it is made."""
    schedule = bubble_fill(make_shared(2), 3, Costs(backward=1, update=0))
    texts = [str(a) if a.kind is Kind.TRANSFER else f"{a.stage}:{a}" for a in schedule.actions]
    sent = texts.index("T0:vision->llm.0")
    assert texts.index("vision:F0") < sent < texts.index("llm.0:F0")
    assert texts[:2] == ["vision:F0", "T0:vision->llm.0"]


def test_costs_of_unknown_stages_are_refused(make_shared):
    with pytest.raises(ScheduleError, match="the forward of 'eyes'"):
        bubble_fill(make_shared(2), 2, Costs(of={("eyes", Kind.FORWARD): 1}))


def test_docstring_shows_what_the_function_makes(make_shared, device_picture):
    costs = Costs(backward=1, update=0)
    for row in device_picture(bubble_fill(make_shared(2), 3, costs), costs):
        assert row in inspect.getdoc(bubble_fill)
