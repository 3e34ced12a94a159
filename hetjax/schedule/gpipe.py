"""GPipe: all forwards, then all backwards."""

from __future__ import annotations

from collections.abc import Sequence

from hetjax.schedule.actions import Action, Schedule, backward, forward, require_graph
from hetjax.schedule.graph import StageGraph, StageNode
from hetjax.schedule.order import total_order


def gpipe(stages: StageGraph | Sequence[str], microbatches: int) -> Schedule:
    """Every stage runs the forwards of all microbatches, then all backwards, first in first out.

    Three stages, four microbatches, with programs of equal length:

        a  F0 F1 F2 F3 .. .. .. .. B0 B1 B2 B3
        b  .. F0 F1 F2 F3 .. .. B0 B1 B2 B3 ..
        c  .. .. F0 F1 F2 F3 B0 B1 B2 B3 .. ..

    Peak of live microbatches: all of them, on every stage that has a backward. On p equal stages with m
    microbatches the idle share is (p - 1) / (m + p - 1).

    `stages` is a graph, or the names of a chain. Reference: Huang et al., arXiv:1811.06965.

    Raises:
        ScheduleError: fewer than one microbatch, or a graph that is not legal.
    """
    graph = require_graph(stages, microbatches)
    local = {stage.name: (*forwards(stage, microbatches), *backwards(stage, microbatches)) for stage in graph.stages}
    order = total_order(graph, microbatches, local)
    return Schedule(name="gpipe", graph=graph, microbatches=microbatches, actions=order)


def forwards(stage: StageNode, microbatches: int) -> tuple[Action, ...]:
    """The forwards of a stage over all microbatches."""
    return tuple(forward(stage.name, index) for index in range(microbatches))


def backwards(stage: StageNode, microbatches: int) -> tuple[Action, ...]:
    """The backwards of a stage over all microbatches; none where the stage has no backward."""
    return tuple(backward(stage.name, index) for index in range(microbatches) if stage.backward)
