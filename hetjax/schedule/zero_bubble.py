"""Zero bubble (ZB-H1): a backward in two parts, of which the one that nobody waits for fills idle time."""

from __future__ import annotations

from hetjax.schedule.actions import Action, backward_input, backward_weight
from hetjax.schedule.builder import schedule_builder
from hetjax.schedule.gpipe import forwards
from hetjax.schedule.graph import StageGraph, StageNode
from hetjax.schedule.one_f_one_b import alternate, forwards_ahead
from hetjax.schedule.order import total_order


@schedule_builder("zero_bubble", summary="1F1B with gradients of weights postponed into idle time")
def zero_bubble(graph: StageGraph, microbatches: int) -> tuple[Action, ...]:
    """Split the backwards of 1F1B: gradients of inputs at once, gradients of weights where a stage would idle.

    With d the depth of a stage and D that of the deepest, a stage warms up with d + 1 forwards, as in 1F1B,
    and lets the gradients of weights of D - d microbatches lie, to be made up at the end. A stage that
    has only one part of a backward (see `StageGraph.splits`), such as the first, runs it whole. Three stages,
    four microbatches, with F, I and W of one unit of time and B of two:

        a  F0 F1 F2 .. .. B0 B0 F3 B1 B1 B2 B2 B3 B3
        b  .. F0 F1 .. I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
        c  .. .. F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3

    Peak of live microbatches: min(microbatches, D + 1) on a stage with split backwards, so that no stage
    keeps more than the deepest does in 1F1B; a stage that runs its backwards whole keeps
    min(microbatches, d + 1). The idle share of p equal stages with F = I = W is (p - 1) / (3 m + p - 1) for
    m >= p, against 3 (p - 1) / (3 m + 3 (p - 1)) of 1F1B. It takes that memory: the last stage starts after
    p - 1 units of time and must then never idle, and the last I has to leave it p units before the end, so
    p Ws come after it. With the min(microbatches, d + 1) of 1F1B on every stage, no order has a smaller
    idle share than 2 (p - 1) / (3 m + 2 (p - 1)).

    Reference: Qi et al., arXiv:2401.10241 (ZB-H1).

    Raises:
        ScheduleError: fewer than one microbatch, or a graph that is not legal.
    """
    deepest = max(graph.depth(stage.name) for stage in graph.stages)
    local = {}
    for stage in graph.stages:
        lead = graph.lead(stage.name)
        if graph.splits(stage.name):
            late = (deepest - graph.depth(stage.name)) // stage.window
            local[stage.name] = _postpone(stage, lead, late, microbatches)
        else:
            local[stage.name] = alternate(stage, lead, microbatches)
    return total_order(graph, microbatches, local, ahead=forwards_ahead(graph))


def _postpone(stage: StageNode, warm_up: int, late: int, microbatches: int) -> tuple[Action, ...]:
    """Return the order on one stage, with the gradients of weights `late` microbatches behind those of inputs."""
    ahead = forwards(stage, microbatches)
    order = list(ahead[:warm_up])
    for index in range(len(ahead)):
        order.append(backward_input(stage.name, index))
        if index >= late:
            order.append(backward_weight(stage.name, index - late))
        order += ahead[warm_up + index : warm_up + index + 1]
    order += [backward_weight(stage.name, index) for index in range(max(0, len(ahead) - late), len(ahead))]
    return tuple(order)
