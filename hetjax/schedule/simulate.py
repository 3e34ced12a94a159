"""Simulate a schedule: when each action runs, given what each costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import HOST_COPIES, Action, Kind, Part, Schedule, pieces
from hetjax.schedule.graph import StageGraph


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds that an action takes, by its kind (or any other unit of time, used throughout).

    `of` holds the exceptions: `(stage, kind)` for a program of one stage, `(edge, Kind.TRANSFER)` for
    one edge in both directions, and `(stage, kind, part)` for a host copy of one part of a stage. The defaults are in
    units of a forward: a backward computes two gradients, that of the inputs and that of the weights, so it takes twice
    as long, and each of its parts once; moving anything takes no time. A program takes as long whatever the number of
    the loss's microbatches that its stage takes at once.
    """

    forward: float = 1.0
    backward: float = 2.0
    backward_input: float = 1.0
    backward_weight: float = 1.0
    update: float = 0.1
    transfer: float = 0.0
    offload: float = 0.0
    reload: float = 0.0
    of: Mapping[tuple[str, Kind] | tuple[str, Kind, Part], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {kind.value: getattr(self, kind.value) for kind in Kind}
        for what, seconds in (named | dict(self.of)).items():
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ScheduleError(f"the cost of {what} is {seconds}; give a finite number of seconds, 0 or more")

    def seconds(self, action: Action) -> float:
        """Return the seconds that one action takes."""
        name = action.edge if action.kind is Kind.TRANSFER else action.stage
        seconds = self.of.get((name, action.kind), getattr(self, action.kind.value))
        return self.of.get((name, action.kind, action.part), seconds)


@dataclass(frozen=True, kw_only=True)
class Span:
    """When one action ran, in seconds from the start of the step.

    `devices` are those that ran it then: all of its stage, or on an independent stage those whose pieces
    ran at the same time, with a span for each such group. A transfer or a host copy has none.
    """

    action: Action
    stage: str
    devices: tuple[Hashable, ...] = ()
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When every action of a schedule ran, in the schedule's order."""

    schedule: Schedule
    spans: tuple[Span, ...]

    @property
    def makespan(self) -> float:
        """Seconds from the first start to the last end."""
        return max((span.end for span in self.spans), default=0.0)

    def idle_share(self, stage: str | None = None) -> float:
        """Return the share of the makespan, 0 to 1, in which devices run no program.

        Of the devices of one stage (busy with any stage that shares them), or over all devices. A stage
        without devices counts as one. A transfer is not a program, nor is a host copy.
        """
        graph = self.schedule.graph
        stages = [stage] if stage is not None else [node.name for node in graph.stages]
        return self.idle_share_of({device for name in stages for device in graph.occupies(name)})

    def idle_share_of(self, devices: Collection[Hashable]) -> float:
        """Return the share of the makespan, 0 to 1, in which these devices run no program."""
        if not self.makespan:
            return 0.0
        return 1 - math.fsum(self._busy[device] for device in devices) / (len(devices) * self.makespan)

    @cached_property
    def _busy(self) -> dict[Hashable, float]:
        graph = self.schedule.graph
        busy = {device: 0.0 for stage in graph.stages for device in graph.occupies(stage.name)}
        for span in self.spans:
            for device in span.devices:
                busy[device] += span.end - span.start
        return busy


def simulate(schedule: Schedule, costs: Costs | None = None, *, transfers_occupy: bool = False) -> Timeline:
    """Compute when every action of a schedule runs, without running it.

    A device takes up its actions in dispatch order, one at a time, each as soon as its needs are met. The
    devices of a stage start a program together, or each its own piece on an independent stage; the
    action ends with its last piece. A transfer starts when its tensor is made and the one before it on the
    same edge and direction is through; with `transfers_occupy` it also keeps the devices at both ends
    busy, in dispatch order, as a collective over both meshes does. A host copy starts on each device when
    the programs before it there are through (one out needs what they make, one back the memory that they leave), runs
    beside those behind it, and a device copies one thing a direction at a time.

    Raises:
        ScheduleError: a cost for a stage or edge that is not in the graph, or an action dispatched before
            something that it needs.
    """
    costs = costs or Costs()
    graph = schedule.graph
    _check_costs(graph, costs)
    ended: dict[Action, float] = {}
    free: dict[Hashable, float] = {}
    copied: dict[tuple[Action, Hashable], float] = {}
    spans = []
    for action in schedule.actions:
        required = schedule.needs(action)
        for need in required:
            if need not in ended:
                raise ScheduleError(f"{action} of {action.stage!r} is dispatched before {need} of {need.stage!r}")
        copies = [need for need in required if need.kind in HOST_COPIES]
        if action.kind in HOST_COPIES:
            for device in graph.occupies(action.stage):
                lane = ("host", device, action.kind)
                earlier = (copied[copy, device] for copy in copies)
                start = max(free.get(lane, 0.0), free.get(device, 0.0), *earlier, 0.0)
                copied[action, device] = free[lane] = start + costs.seconds(action)
            end = ended[action] = max(copied[action, device] for device in graph.occupies(action.stage))
            spans.append(Span(action=action, stage=action.stage, start=end - costs.seconds(action), end=end))
            continue
        ready = max([0.0, *(ended[need] for need in required if need.kind not in HOST_COPIES)])
        starts: dict[float, list[Hashable]] = {}
        for lanes in _lanes(graph, action, transfers_occupy):
            # Each device waits for its own copies.
            arrived = (copied[copy, device] for copy in copies for device in lanes)
            start = max(ready, *arrived, *(free.get(lane, 0.0) for lane in lanes))
            free.update(dict.fromkeys(lanes, start + costs.seconds(action)))
            starts.setdefault(start, []).extend(lanes)
        ended[action] = max(starts) + costs.seconds(action)
        for start, lanes in starts.items():
            devices = () if action.kind is Kind.TRANSFER else tuple(lanes)
            end = start + costs.seconds(action)
            spans.append(Span(action=action, stage=action.stage, devices=devices, start=start, end=end))
    return Timeline(schedule=schedule, spans=tuple(spans))


def _lanes(graph: StageGraph, action: Action, transfers_occupy: bool) -> tuple[tuple[Hashable, ...], ...]:
    """Return what an action keeps busy (devices, or one direction of an edge), in groups that start together."""
    if action.kind is not Kind.TRANSFER:
        return pieces(graph, action)
    edge = graph.edge(action.edge)
    direction = ("edge", edge.name, action.backward)
    if not transfers_occupy:
        return ((direction,),)
    return ((direction, *graph.occupies(edge.source), *graph.occupies(edge.destination)),)


def _check_costs(graph: StageGraph, costs: Costs) -> None:
    for name, kind, *_ in costs.of:
        known = [item.name for item in (graph.edges if kind is Kind.TRANSFER else graph.stages)]
        if name not in known:
            raise ScheduleError(
                f"a cost is given for the {kind.value} of {name!r}, which the graph does not have; "
                f"it has {', '.join(known) or 'none'}"
            )
