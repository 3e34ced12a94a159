"""1F1B: one forward, one backward, so that few microbatches are alive at once."""

from __future__ import annotations

from hetjax.schedule.actions import Action
from hetjax.schedule.builder import schedule_builder
from hetjax.schedule.gpipe import backwards, forwards
from hetjax.schedule.graph import StageGraph, StageNode
from hetjax.schedule.order import total_order


@schedule_builder("1f1b", summary="depth + 1 forwards, then one backward and one forward in turn")
def one_f_one_b(graph: StageGraph, microbatches: int) -> tuple[Action, ...]:
    """Warm up each stage with depth + 1 forwards, then run one backward and one forward in turn.

    The depth of a stage is the longest way from it to the loss, so this works on any graph: encoders
    of different numbers of stages warm up as far ahead as each has to. Three stages, four
    microbatches, with programs of equal length:

        a  F0 F1 F2 .. .. B0 F3 B1 .. B2 .. B3
        b  .. F0 F1 .. B0 F2 B1 F3 B2 .. B3 ..
        c  .. .. F0 B0 F1 B1 F2 B2 F3 B3 .. ..

    A stage whose microbatches are windows, each of r of its reader's, warms up with 1 + ceil((r - 1 + w) / r) of its
    own, where the reader warms up with w (`StageGraph.lead`): at most three windows where r >= w.

    Peak of live microbatches: min(microbatches, depth + 1), so 1 on the stage of the loss. A stage
    without backward keeps nothing alive, and is dispatched at most depth + 1 microbatches ahead of its
    readers, so that its outputs do not pile up.
    The idle share of p equal stages is that of GPipe, (p - 1) / (m + p - 1), in less memory.

    Reference: Narayanan et al., arXiv:2104.04473 (the
    non-interleaved schedule, PipeDream-Flush).

    Raises:
        ScheduleError: fewer than one microbatch, or a graph that is not legal.
    """
    local = {stage.name: alternate(stage, graph.lead(stage.name), microbatches) for stage in graph.stages}
    return total_order(graph, microbatches, local, ahead=forwards_ahead(graph))


def alternate(stage: StageNode, warm_up: int, microbatches: int) -> tuple[Action, ...]:
    """Return the order on one stage: `warm_up` forwards (all, if it has fewer), then backward and forward in turn."""
    ahead, back = forwards(stage, microbatches), backwards(stage, microbatches)
    if not back:
        return ahead
    order = list(ahead[:warm_up])
    for index, action in enumerate(back):
        order.append(action)
        order += ahead[warm_up + index : warm_up + index + 1]
    return tuple(order)


def forwards_ahead(graph: StageGraph) -> dict[str, int]:
    """Return how many microbatches stages without backward may run ahead of their readers: as if they had one."""
    return {stage.name: graph.lead(stage.name) for stage in graph.stages if not stage.backward}
