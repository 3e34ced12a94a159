"""Colocated: encoders and language model take turns, for modules that share their devices."""

from __future__ import annotations

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action
from hetjax.schedule.builder import schedule_builder
from hetjax.schedule.gpipe import backwards, forwards
from hetjax.schedule.graph import StageGraph
from hetjax.schedule.one_f_one_b import alternate, one_f_one_b
from hetjax.schedule.order import total_order


@schedule_builder("colocated", summary="all encoder forwards, the language model's 1F1B, all encoder backwards")
def colocated(graph: StageGraph, microbatches: int) -> tuple[Action, ...]:
    """Run all encoder forwards, then the language model's own 1F1B pipeline, then all encoder backwards.

    The language model is the module that holds the loss; every other module counts as an encoder. The
    work of the two never interleaves, so a device that holds both changes over twice a step. An encoder
    on the devices of both stages of a language model, three microbatches, programs of equal length:

        vision  F0 F1 F2 .. .. .. .. .. .. .. .. B0 B1 B2
        llm.0   .. .. .. F0 F1 .. B0 F2 B1 .. B2 .. .. ..
        llm.1   .. .. .. .. F0 B0 F1 B1 F2 B2 .. .. .. ..

    Peak of live microbatches: all of them on an encoder that has a backward, min(microbatches,
    depth + 1) on a stage of the language model. The queues between the two must hold all microbatches.

    Raises:
        ScheduleError: fewer than one microbatch, or an encoder that reads what the language model produces.
    """
    module = graph.sink.module
    language = [stage for stage in graph.stages if stage.module == module]
    encoders = [stage for stage in graph.stages if stage.module != module]
    for edge in graph.edges:
        if graph.stage(edge.source) in language and graph.stage(edge.destination) in encoders:
            raise ScheduleError(
                f"{colocated.name}: edge {edge.name!r} leads from {module!r}, the module of the loss, into stage "
                f"{edge.destination!r}, so that stage cannot run before all of {module!r}; use "
                f"'{one_f_one_b.name}' for this graph"
            )
    return total_order(
        graph,
        microbatches,
        {stage.name: forwards(stage, microbatches) for stage in encoders},
        {stage.name: alternate(stage, graph.lead(stage.name), microbatches) for stage in language},
        {stage.name: backwards(stage, microbatches) for stage in encoders},
    )
