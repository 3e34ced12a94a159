"""Is a schedule legal? Judged from the actions alone, without a word on how they were made.

An execution keeps the tensors that exist and lets an action run only on what is there. It is walked
twice: once in the total order, and once the way meshes run it, each through its own actions, with
senders that block while a queue is full.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Kind, Schedule
from hetjax.schedule.graph import StageGraph

Queue = tuple[str, bool]  # an edge's name, and whether it is the queue of its gradients


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a legal schedule keeps in memory.

    `peak_live` counts, for each stage, the microbatches whose forward has run and whose backward has not;
    it is 0 for a stage without backward, which keeps nothing. `peak_queued` counts, for each edge, the
    microbatches (the larger of activations and gradients) sent and not yet read, in the total order.
    `queue` is the capacity, in microbatches, under which the schedule was found free of deadlock.
    """

    actions: int
    queue: int
    peak_live: dict[str, int]
    peak_queued: dict[str, int]


def check(schedule: Schedule, *, queue: int | None = None) -> Report:
    """Verify that a schedule is complete, in a legal order, and free of deadlock.

    `queue` is how many microbatches each edge holds in each direction, sent and not yet read; a sender
    blocks while its queue is full. By default all microbatches fit.

    Raises:
        ScheduleError: a needed action is missing, twice there or superfluous; an action comes before
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
    """Every needed action exactly once, and nothing else."""
    wanted = _wanted(schedule.graph, schedule.microbatches)
    counts = Counter(schedule.actions)
    for action, count in counts.items():
        if action not in wanted:
            raise ScheduleError(
                f"schedule {schedule.name!r}: {_label(action)} is superfluous; a step of {schedule.microbatches} "
                "microbatches over this graph has no such action"
            )
        if count > 1:
            raise ScheduleError(f"schedule {schedule.name!r}: {_label(action)} occurs {count} times; keep one")
    missing = [action for action in wanted if action not in counts]
    if missing:
        raise ScheduleError(f"schedule {schedule.name!r}: {_label(missing[0])} is missing ({len(missing)} in all)")


def _wanted(graph: StageGraph, microbatches: int) -> dict[Action, None]:
    """The actions of a complete step, as an ordered set."""
    wanted: dict[Action, None] = {}
    for index in range(microbatches):
        for stage in graph.stages:
            wanted[Action(Kind.FORWARD, stage.name, index)] = None
            if stage.backward:
                wanted[Action(Kind.BACKWARD, stage.name, index)] = None
        for edge in graph.edges:
            wanted[Action(Kind.TRANSFER, edge.source, index, edge=edge.name)] = None
            if edge.backward:
                wanted[Action(Kind.TRANSFER, edge.destination, index, edge=edge.name, backward=True)] = None
    for stage in graph.stages:
        if stage.update:
            wanted[Action(Kind.UPDATE, stage.name)] = None
    return wanted


def _check_order(schedule: Schedule) -> _Execution:
    """Walk the total order; every action must find what it needs."""
    execution = _Execution(schedule.graph, schedule.microbatches)
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
    """Let every device run its own actions in their order until all are through, or none can go on."""
    execution = _Execution(schedule.graph, schedule.microbatches)
    remaining: dict[Hashable, deque[Action]] = {}
    for action in schedule.actions:
        for device in schedule.graph.occupies(action.stage):
            remaining.setdefault(device, deque()).append(action)
    progress = True
    while progress:
        progress = False
        for own in remaining.values():
            while own and not _blocked(execution, remaining, own[0], queue):
                progress = True
                action = own[0]
                execution.run(action)
                for device in schedule.graph.occupies(action.stage):
                    remaining[device].popleft()
    stuck = {own[0]: _blocked(execution, remaining, own[0], queue) for own in remaining.values() if own}
    if stuck:
        waits = "; ".join(f"{_label(action)} waits for {', '.join(reasons)}" for action, reasons in stuck.items())
        raise ScheduleError(
            f"schedule {schedule.name!r} deadlocks with queues of {queue} microbatches: {waits}; "
            "give the edges longer queues or reorder the actions"
        )


def _blocked(execution: _Execution, remaining: dict[Hashable, deque[Action]], action: Action, queue: int) -> list[str]:
    """Why an action at the head of one device cannot run yet."""
    reasons = execution.lacking(action)
    if action.kind is Kind.TRANSFER and len(execution.queued(action.edge, action.backward)) >= queue:
        what = "gradients" if action.backward else "activations"
        reasons.append(f"room in the queue of edge {action.edge!r} ({queue} of {queue} {what} unread)")
    for device in execution.graph.occupies(action.stage):
        if remaining[device][0] != action:
            reasons.append(f"its turn on device {device} behind {_label(remaining[device][0])}")
    return reasons


def _label(action: Action) -> str:
    if action.kind is Kind.TRANSFER:
        return str(action)
    return f"{action} of stage {action.stage!r}"


@dataclass
class _Execution:
    """What exists at one moment of a step: live forwards, tensors made and not sent, tensors sent and not read."""

    graph: StageGraph
    microbatches: int
    live: dict[str, set[int]] = field(default_factory=dict)
    made: set[tuple[Queue, int]] = field(default_factory=set)
    queues: dict[Queue, set[int]] = field(default_factory=dict)
    backwards: Counter[str] = field(default_factory=Counter)
    peak_live: dict[str, int] = field(default_factory=dict)
    peak_queued: Counter[Queue] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.live = {stage.name: set() for stage in self.graph.stages}
        self.peak_live = {stage.name: 0 for stage in self.graph.stages}

    def queued(self, edge: str, backward: bool) -> set[int]:
        return self.queues.setdefault((edge, backward), set())

    def edge_peaks(self) -> dict[str, int]:
        return {e.name: max(self.peak_queued[e.name, False], self.peak_queued[e.name, True]) for e in self.graph.edges}

    def lacking(self, action: Action) -> list[str]:
        """What an action needs and does not find, in words."""
        stage, index = action.stage, action.microbatch
        if action.kind is Kind.TRANSFER:
            made = ((action.edge, action.backward), index) in self.made
            return [] if made else [f"{'B' if action.backward else 'F'}{index} of stage {stage!r}"]
        if action.kind is Kind.UPDATE:
            left = {s.name: self.microbatches - self.backwards[s.name] for s in self.graph.stages if s.backward}
            return [f"{count} more backwards of stage {name!r}" for name, count in left.items() if count]
        reads = self._reads(action)
        unsent = [queue for queue in reads if index not in self.queued(*queue)]
        lacking = [f"{'TB' if backward else 'T'}{index}:{edge}" for edge, backward in unsent]
        if action.kind is Kind.BACKWARD and index not in self.live[stage]:
            lacking.insert(0, f"F{index} of stage {stage!r}")
        return lacking

    def run(self, action: Action) -> None:
        """Take what an action reads, and put what it makes."""
        stage, index = action.stage, action.microbatch
        if action.kind is Kind.TRANSFER:
            key = (action.edge, action.backward)
            self.made.remove((key, index))
            self.queued(*key).add(index)
            self.peak_queued[key] = max(self.peak_queued[key], len(self.queued(*key)))
            return
        for edge, backward in self._reads(action):
            self.queued(edge, backward).remove(index)
        if action.kind is Kind.FORWARD:
            self.made |= {((edge.name, False), index) for edge in self.graph.outputs(stage)}
            if self.graph.stage(stage).backward:
                self.live[stage].add(index)
                self.peak_live[stage] = max(self.peak_live[stage], len(self.live[stage]))
        if action.kind is Kind.BACKWARD:
            self.made |= {((edge.name, True), index) for edge in self.graph.inputs(stage) if edge.backward}
            self.live[stage].remove(index)
            self.backwards[stage] += 1

    def _reads(self, action: Action) -> list[Queue]:
        """The queues that a forward or a backward takes its microbatch from."""
        if action.kind is Kind.FORWARD:
            return [(edge.name, False) for edge in self.graph.inputs(action.stage)]
        if action.kind is Kind.BACKWARD:
            return [(edge.name, True) for edge in self.graph.outputs(action.stage) if edge.backward]
        return []
