"""GPipe: all forwards, then all backwards."""

from __future__ import annotations

from hetjax.schedule.actions import Action, backward, forward
from hetjax.schedule.builder import schedule_builder
from hetjax.schedule.graph import StageGraph, StageNode
from hetjax.schedule.order import total_order


@schedule_builder("gpipe", summary="all forwards, then all backwards")
def gpipe(graph: StageGraph, microbatches: int) -> tuple[Action, ...]:
    """Run the forwards of all microbatches on every stage, then all backwards, first in first out.

    Three stages, four microbatches, with programs of equal length:

        a  F0 F1 F2 F3 .. .. .. .. B0 B1 B2 B3
        b  .. F0 F1 F2 F3 .. .. B0 B1 B2 B3 ..
        c  .. .. F0 F1 F2 F3 B0 B1 B2 B3 .. ..

    Peak of live microbatches: all of them, on every stage that has a backward. On p equal stages with m
    microbatches the idle share is (p - 1) / (m + p - 1).

    Reference: Huang et al., arXiv:1811.06965.

    Raises:
        ScheduleError: fewer than one microbatch, or a graph that is not legal.
    """
    local = {stage.name: (*forwards(stage, microbatches), *backwards(stage, microbatches)) for stage in graph.stages}
    return total_order(graph, microbatches, local)


def forwards(stage: StageNode, microbatches: int) -> tuple[Action, ...]:
    """Return the forwards of a stage over all its microbatches."""
    return tuple(forward(stage.name, index) for index in range(microbatches // stage.window))


def backwards(stage: StageNode, microbatches: int) -> tuple[Action, ...]:
    """Return the backwards of a stage over all its microbatches; none where the stage has no backward."""
    return tuple(backward(stage.name, index) for index in range(microbatches // stage.window) if stage.backward)
