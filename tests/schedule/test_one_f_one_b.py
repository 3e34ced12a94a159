import inspect

import pytest

from hetjax.schedule import check, one_f_one_b


def test_stages_warm_up_by_their_depth_then_alternate():
    schedule = one_f_one_b("abc", 4)
    assert " ".join(map(str, schedule.on("a"))) == "F0 F1 F2 B0 F3 B1 B2 B3 update"
    assert " ".join(map(str, schedule.on("b"))) == "F0 F1 B0 F2 B1 F3 B2 B3 update"
    assert " ".join(map(str, schedule.on("c"))) == "F0 B0 F1 B1 F2 B2 F3 B3 update"


def test_passes_the_checker_on_every_graph_and_keeps_at_most_depth_plus_one_alive(graph, microbatches):
    report = check(one_f_one_b(graph, microbatches))
    for stage in graph.stages:
        bound = min(microbatches, graph.depth(stage.name) + 1) if stage.backward else 0
        assert report.peak_live[stage.name] == bound


def test_outputs_of_a_frozen_encoder_do_not_pile_up(named_graph):
    graph = named_graph("frozen-encoder")
    report = check(one_f_one_b(graph, 32))
    for edge in graph.edges:
        assert report.peak_queued[edge.name] <= graph.depth(edge.source) + 1


@pytest.mark.parametrize("name", ["chain-4", "fan-in-3", "long-encoder", "uneven"])
def test_queues_of_one_microbatch_suffice_between_meshes_of_their_own(named_graph, name):
    assert check(one_f_one_b(named_graph(name), 8), queue=1).queue == 1


def test_queues_of_depth_plus_one_suffice_on_every_graph(graph):
    longest = max(graph.depth(stage.name) for stage in graph.stages)
    assert check(one_f_one_b(graph, 8), queue=longest + 1)


def test_docstring_shows_what_the_function_makes(picture):
    for row in picture(one_f_one_b("abc", 4)):
        assert row in inspect.getdoc(one_f_one_b)
