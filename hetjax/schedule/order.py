"""Merge the orders on the stages into one total order, which a single controller dispatches action by action.

The order comes from list scheduling with unit costs (for a window as many as its microbatches): time goes in rounds, in
each round every free mesh starts the next program of one of its stages if its needs are met, and the actions of a round
follow those of the round before. When local orders compete for shared devices, what makes gradients for others goes
first, then forwards, then gradients of weights; among equals, the stage nearer to the loss goes first.

A transfer is dispatched at the start of the round after its producer's, before the programs of that round.
That is as early as it can start without holding anybody up: the part of a boundary that runs on the
source mesh follows its producer directly, and the copy overlaps with whatever both meshes compute next.
Dispatched directly behind its producer instead, the part on the destination mesh could land ahead of
programs that start together with the producer, and would stall them until the producer has finished;
dispatched just before its consumer, the part on the source mesh would wait behind later programs.
Of a window's output each microbatch goes out one forward of its reader ahead, or all at once (`sends`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Mapping, Sequence

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Kind, Split, crossings, forward, needs, sends, split_backwards, update
from hetjax.schedule.graph import StageGraph

LocalOrders = Mapping[str, Sequence[Action]]

_URGENCY = {Kind.BACKWARD: 0, Kind.BACKWARD_INPUT: 0, Kind.FORWARD: 1, Kind.BACKWARD_WEIGHT: 2}


def total_order(
    graph: StageGraph,
    microbatches: int,
    *phases: LocalOrders,
    ahead: Mapping[str, int] | None = None,
) -> tuple[Action, ...]:
    """Merge local orders of programs into one order with every TRANSFER, and every UPDATE last.

    Each phase maps a name, that of a stage or of stages that take turns on one mesh, to their actions in
    order; a phase starts when all before it are through. `ahead`
    bounds, for the stages that it names, how many microbatches their forwards may run ahead of the
    stages that read them. The result depends on nothing but the arguments.

    Raises:
        ScheduleError: the local orders wait for each other; names the blocked stages and what each waits for.
    """
    order: list[Action] = []
    done: set[Action] = set()
    arriving: list[Action] = []
    running: dict[Action, int] = {}  # rounds that are left of each
    split = split_backwards([action for phase in phases for own in phase.values() for action in own])
    for phase in phases:
        waiting = {name: deque(own) for name, own in phase.items()}
        while any(waiting.values()) or running:
            order += arriving
            done.update(arriving)
            arriving = []
            heads = {queue[0]: name for name, queue in waiting.items() if queue}
            lacks = {head: _lacking(graph, microbatches, head, done, ahead or {}, split) for head in heads}
            started = _start(graph, [action for action, lack in lacks.items() if not lack], running)
            if not started and not running:
                raise ScheduleError(_deadlock(lacks))
            for action in started:
                waiting[heads[action]].popleft()
                running[action] = graph.stage(action.stage).window
            order += started
            running = {action: left - 1 for action, left in running.items()}
            for action in [action for action, left in running.items() if not left]:
                del running[action]
                done.add(action)
                arriving += sends(graph, action, done)
    updates = [update(stage.name) for stage in graph.stages if stage.update]
    return (*order, *arriving, *updates)


def _lacking(
    graph: StageGraph, microbatches: int, action: Action, done: set[Action], ahead: Mapping[str, int], split: Split
) -> list[Action]:
    """Return the actions that have to be done before one may start."""
    required = list(needs(graph, microbatches, action, split))
    if action.kind is Kind.FORWARD and action.stage in ahead:
        earlier = action.microbatch - ahead[action.stage]
        if earlier >= 0:
            required += [
                forward(edge.destination, crossings(graph, edge, earlier)[-1]) for edge in graph.outputs(action.stage)
            ]
    return [need for need in required if need not in done]


def _start(graph: StageGraph, ready: list[Action], running: Collection[Action]) -> list[Action]:
    """Return those of the actions that could start now whose devices are free."""
    taken: set[Hashable] = {device for action in running for device in graph.occupies(action.stage)}
    started = []
    for action in sorted(ready, key=lambda a: (_URGENCY[a.kind], graph.depth(a.stage))):
        occupied = set(graph.occupies(action.stage))
        if not occupied & taken:
            taken |= occupied
            started.append(action)
    return started


def _deadlock(lacks: Mapping[Action, list[Action]]) -> str:
    blocked = "; ".join(
        f"stage {action.stage!r} at {action} waits for {', '.join(f'{need} of {need.stage!r}' for need in lack)}"
        for action, lack in lacks.items()
    )
    return f"the local orders of the stages deadlock: {blocked}; reorder the actions so that no stages wait in a circle"
