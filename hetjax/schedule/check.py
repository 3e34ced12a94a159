"""Check that a schedule is legal, from its actions alone, however they were made.

An `Execution` keeps the tensors that exist, and an action runs only on what exists. It is walked
twice: once in the total order, and once the way meshes run it, each through its own actions, with
senders that block while a queue is full.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import HOST_COPIES, Action, Kind, Part, Schedule, offload, pieces, reload
from hetjax.schedule.execution import Execution
from hetjax.schedule.graph import StageGraph


@dataclass(frozen=True, kw_only=True)
class Report:
    """The memory that a legal schedule needs.

    `peak_live` counts, for each stage, the microbatches whose forward has run and whose backward (of a
    split one, the part for the weights) has not; it is 0 for a stage without backward, which keeps nothing. They are
    microbatches of the stage: windows, where it takes several of the loss's at once.
    `peak_queued` counts, for each edge, the destination's microbatches (the larger of activations and gradients) sent
    and not yet read, in the total order. `queue` is the capacity, in microbatches, under which the schedule was
    found free of deadlock.
    """

    actions: int
    queue: int
    peak_live: dict[str, int]
    peak_queued: dict[str, int]


def check(schedule: Schedule, *, queue: int | None = None) -> Report:
    """Verify that a schedule is complete, in a legal order, and free of deadlock.

    `queue` is how many microbatches each edge holds in each direction, sent and not yet read; a sender
    blocks while its queue is full. Gradients wait to be read by the source, so of them it is a number of the source's
    microbatches. By default all microbatches fit.

    Raises:
        ScheduleError: a needed action is missing, listed twice or superfluous; an action comes before
            something that it needs; or the meshes, each in its own order, wait for each other.
    """
    queue = schedule.microbatches if queue is None else queue
    if queue < 1:
        raise ScheduleError(f"queue={queue}: an edge must hold at least 1 microbatch")
    _check_complete(schedule)
    execution = _check_order(schedule)
    _check_meshes(schedule, queue)
    return Report(
        actions=len(schedule.actions), queue=queue, peak_live=execution.peak_live, peak_queued=execution.edge_peaks()
    )


def _check_complete(schedule: Schedule) -> None:
    """Require every needed action exactly once, and nothing else."""
    wanted = _wanted(schedule)
    counts = Counter(schedule.actions)
    for action in [action for action in counts if action.kind in HOST_COPIES]:
        _check_copy(schedule, action)
        wanted |= {action: None, _other_way(action): None}
    for action, count in counts.items():
        if action not in wanted:
            _refuse_split(schedule, action)
            raise ScheduleError(
                f"schedule {schedule.name!r}: {_label(action)} is superfluous; a step of {schedule.microbatches} "
                "microbatches over this graph has no such action"
            )
        if count > 1:
            raise ScheduleError(f"schedule {schedule.name!r}: {_label(action)} occurs {count} times; keep one")
    missing = [action for action in wanted if action not in counts]
    if missing:
        raise ScheduleError(f"schedule {schedule.name!r}: {_label(missing[0])} is missing ({len(missing)} in all)")


def _check_copy(schedule: Schedule, action: Action) -> None:
    """Raise ScheduleError for a host copy of something that a step does not have."""
    stage = schedule.graph.stage(action.stage)
    exists = {
        Part.RESIDUALS: stage.backward and action.microbatch is not None,
        Part.WEIGHTS: action.microbatch is None,
        Part.OPTIMIZER: stage.update and action.microbatch is None,
    }
    if not exists.get(action.part):
        raise ScheduleError(
            f"schedule {schedule.name!r}: {_label(action)} is superfluous; the stage has no such part to move"
        )


def _other_way(action: Action) -> Action:
    """Return the copy that goes with a copy, in the other direction."""
    make = reload if action.kind is Kind.OFFLOAD else offload
    return make(action.stage, action.part, action.microbatch)


def _refuse_split(schedule: Schedule, action: Action) -> None:
    """Raise ScheduleError for a part of a backward that its stage cannot split."""
    if action.kind not in (Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT):
        return
    stage = schedule.graph.stage(action.stage)
    if not schedule.graph.splits(stage.name):
        why = "has no input that takes a gradient" if stage.update else "does not train"
        raise ScheduleError(
            f"schedule {schedule.name!r}: {_label(action)} splits a backward that has one part only, as stage "
            f"{stage.name!r} {why}; use B{action.microbatch}"
        )


def _wanted(schedule: Schedule) -> dict[Action, None]:
    """Return the actions of a complete step, as an ordered set; backwards in two parts where it splits them."""
    graph = schedule.graph
    parts = {(a.stage, a.microbatch) for a in schedule.actions if a.kind in (Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)}
    whole = {(a.stage, a.microbatch) for a in schedule.actions if a.kind is Kind.BACKWARD}
    wanted: dict[Action, None] = {}
    for stage in graph.stages:
        for index in range(schedule.count(stage.name)):
            wanted[Action(Kind.FORWARD, stage.name, index)] = None
            if not stage.backward:
                continue
            split = graph.splits(stage.name) and (stage.name, index) in parts - whole
            for kind in (Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT) if split else (Kind.BACKWARD,):
                wanted[Action(kind, stage.name, index)] = None
    for edge in graph.edges:
        for index in range(schedule.count(edge.destination)):
            wanted[Action(Kind.TRANSFER, edge.source, index, edge=edge.name)] = None
            if edge.backward:
                wanted[Action(Kind.TRANSFER, edge.destination, index, edge=edge.name, backward=True)] = None
    for stage in graph.stages:
        if stage.update:
            wanted[Action(Kind.UPDATE, stage.name)] = None
    return wanted


def _check_order(schedule: Schedule) -> Execution:
    """Walk the total order, in which every action must find what it needs."""
    execution = Execution(schedule)
    for position, action in enumerate(schedule.actions):
        lacking = execution.lacking(action)
        if lacking:
            raise ScheduleError(
                f"schedule {schedule.name!r}, action {position}: {_label(action)} comes before {lacking[0]}, "
                "which it needs; move it behind"
            )
        execution.run(action)
    return execution


def _check_meshes(schedule: Schedule, queue: int) -> None:
    """Let every device run its own actions in their order until all are through, or none can go on.

    The devices of a stage run an action together, or each its piece on an independent stage; what the
    action makes exists after its last piece. A transfer takes all devices of its origin together, which
    is the stricter assumption.
    """
    execution = Execution(schedule)
    remaining: dict[Hashable, deque[Action]] = {}
    for action in schedule.actions:
        for device in schedule.graph.occupies(action.stage):
            remaining.setdefault(device, deque()).append(action)
    progress = True
    while progress:
        progress = False
        for device, own in remaining.items():
            while own and not _blocked(execution, remaining, own[0], device, queue):
                progress = True
                action = own[0]
                together = _together(schedule.graph, action, device)
                execution.run_piece(action, together)
                for other in together:
                    remaining[other].popleft()
    stuck = {own[0]: _blocked(execution, remaining, own[0], device, queue) for device, own in remaining.items() if own}
    if stuck:
        waits = "; ".join(f"{_label(action)} waits for {', '.join(reasons)}" for action, reasons in stuck.items())
        raise ScheduleError(
            f"schedule {schedule.name!r} deadlocks with queues of {queue} microbatches: {waits}; "
            "give the edges longer queues or reorder the actions"
        )


def _together(graph: StageGraph, action: Action, device: Hashable) -> tuple[Hashable, ...]:
    """Return the devices that run an action together with this device."""
    return next(group for group in pieces(graph, action) if device in group)


def _blocked(
    execution: Execution, remaining: dict[Hashable, deque[Action]], action: Action, device: Hashable, queue: int
) -> list[str]:
    """Return why the next action of one device cannot run yet."""
    reasons = execution.lacking(action)
    if action.kind is Kind.TRANSFER:
        what = "gradients" if action.backward else "activations"
        graph, unread = execution.schedule.graph, len(execution.queued(action.edge, action.backward))
        room = queue * graph.ratio(graph.edge(action.edge)) if action.backward else queue
        if unread >= room:
            reasons.append(f"room in the queue of edge {action.edge!r} ({unread} of {room} {what} unread)")
    for other in _together(execution.schedule.graph, action, device):
        if remaining[other][0] != action:
            reasons.append(f"its turn on device {other} behind {_label(remaining[other][0])}")
    return reasons


def _label(action: Action) -> str:
    if action.kind is Kind.TRANSFER:
        return str(action)
    return f"{action} of stage {action.stage!r}"
