"""The bytes that a training step holds on a device, action by action of its schedule. Plain numbers; imports no JAX."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

from hetjax.schedule import Kind, Schedule, StageEdge
from hetjax.schedule.actions import ENDS_MICROBATCH, HOST_COPIES, Action, Part

PERSISTENT = ("master weights", "compute weights", "gradients", "optimizer state", "buffers")
"""What a stage holds all step long."""
RESIDUALS, CROSSING = "residuals", "batch and boundaries"
"""What waits for a program: kept between a forward and its backward; of the batch, or on its way between stages."""
TEMPORARIES = "temporaries and new outputs"
PARTS = (*PERSISTENT, RESIDUALS, CROSSING, TEMPORARIES)
"""What a device's memory goes to, as reports list it."""


class CallBytes(NamedTuple):
    """Bytes of a device that a call of a program takes beside its arguments.

    Attributes:
        temporary: between its start and its end.
        fresh: results that do not lie in the memory of donated arguments.
    """

    temporary: int
    fresh: int

    @property
    def total(self) -> int:
        """Both."""
        return self.temporary + self.fresh


NOTHING = CallBytes(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageBytes:
    """What a stage holds on each of its devices, in bytes.

    Attributes:
        persistent: by the names of `PERSISTENT`.
        reduced: the gradients of the whole batch, from "reduce" to the update.
        batch: inputs of one of its microbatches that come from the batch.
        residuals: of one microbatch, from its forward to its backward, with arguments that the backward takes again.
        pending: of one microbatch, from BACKWARD_INPUT to BACKWARD_WEIGHT.
        calls: by the name of a program in its stage: "prepare", "zeros", "forward", "backward", "backward_input",
            "backward_weight", "reduce", "end_of_step", "update"; none for those it lacks.
        late_gradients: whether the gradients are there from the first backward on, and not all step long.
        copied: what a host copy of WEIGHTS or OPTIMIZER moves, by the names of `PERSISTENT`.
    """

    persistent: Mapping[str, int]
    reduced: int = 0
    batch: int = 0
    residuals: int = 0
    pending: int = 0
    calls: Mapping[str, CallBytes] = dataclasses.field(default_factory=dict)
    late_gradients: bool = False
    copied: Mapping[Part, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    def moved(self, part: Part) -> Mapping[str, int]:
        """Return what a host copy of a part moves, by the names of `PARTS`."""
        return {RESIDUALS: self.residuals} if part is Part.RESIDUALS else self.copied.get(part, {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkBytes:
    """What the tensor of a link takes on each device of its ends; its gradient takes the same.

    Attributes:
        port: the output that it leaves its source by; links of one port share the array there.
        source, destination: bytes on a device of either end, of one of that end's microbatches.
        pieces: where the source's microbatch holds several of the destination's, how many a device has of them.
        cut, join: what cutting them apart and joining their gradients take, the results included.
        shares: whether the source's array becomes the destination's where it lies, so that it counts once.
        blanks: what lies on a device of either end all the time, for moving it, by end.
        calls: what moving it takes on a device of either end, by (end, backward).
    """

    port: str
    source: int
    destination: int
    pieces: int = 1
    cut: CallBytes = NOTHING
    join: CallBytes = NOTHING
    shares: bool = False
    blanks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    calls: Mapping[tuple[str, bool], CallBytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """What a device holds while one action runs.

    Attributes:
        stage: the stage that runs something, which need not be one of the device's.
        action: what runs, such as "F0", "B0", "update".
        held: bytes by the names of `PARTS`.
        host: bytes that lie in the memory of the host meanwhile.
    """

    stage: str
    action: str
    held: Mapping[str, int]
    host: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.held.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceGroup:
    """Devices that hold the same stages, and what each of them holds through a step.

    Attributes:
        stages: names of the stages, in the order of the data.
        devices: as the schedule's graph numbers them.
        moments: in the order of the schedule.
    """

    stages: tuple[str, ...]
    devices: tuple[Hashable, ...]
    moments: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        """The first moment at which it holds the most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def host(self) -> int:
        """The most bytes in the memory of the host, for each device."""
        return max(moment.host for moment in self.moments)


def device_groups(
    schedule: Schedule, stages: Mapping[str, StageBytes], links: Mapping[str, LinkBytes]
) -> tuple[DeviceGroup, ...]:
    """Walk a schedule as the executor does, and return what devices hold, those with the same stages together.

    Memory is free for the next action once the last reader of an array was dispatched, as on one stream of a GPU. What
    is copied to the host is free after the next program, beside which the copy runs; what comes back is there from the
    dispatch of its copy on. A copy takes no memory of the device beside that.
    """
    graph = schedule.graph
    of_device: dict[Hashable, list[str]] = {}
    for stage in graph.stages:
        for device in graph.occupies(stage.name):
            of_device.setdefault(device, []).append(stage.name)
    alike: dict[tuple[str, ...], list[Hashable]] = {}
    for device, names in of_device.items():
        alike.setdefault(tuple(names), []).append(device)
    return tuple(
        DeviceGroup(stages=names, devices=tuple(devices), moments=tuple(_Walk(schedule, stages, links, names)))
        for names, devices in alike.items()
    )


class _Walk:
    """The moments of a device with these stages."""

    def __init__(
        self,
        schedule: Schedule,
        stages: Mapping[str, StageBytes],
        links: Mapping[str, LinkBytes],
        names: tuple[str, ...],
    ):
        self.schedule, self.stages, self.links, self.names = schedule, stages, links, names
        self.held: Counter[str] = Counter()
        # Links of a port that have not been served yet, by port and microbatch, without those that cut the array.
        self.waiting: Counter[tuple[str, str, int]] = Counter()
        self.left = {name: schedule.count(name) for name in names}
        # Copied to the host beside the next program.
        self.leaving: Counter[str] = Counter()
        self.ran = False  # whether a program ran anywhere since
        self.host = 0

    def __iter__(self) -> Iterator[Moment]:
        for name in self.names:
            own = self.stages[name]
            self.held.update(own.persistent)
            self.held["gradients"] -= own.persistent["gradients"] if own.late_gradients else 0
            self.held[CROSSING] += own.batch * self.schedule.count(name)
        for edge in self.schedule.graph.edges:
            blanks = self.links[edge.name].blanks
            self.held[CROSSING] += blanks.get("source", 0) if edge.source in self.names else 0
            self.held[CROSSING] += blanks.get("destination", 0) if edge.destination in self.names else 0
        for name in self.names:
            yield from self._call(name, "prepare", "prepare", fresh=False)
        for action in self.schedule.actions:
            if action.kind is Kind.TRANSFER:
                yield from self._transfer(action)
            elif action.kind in HOST_COPIES:
                yield from self._host_copy(action)
            else:
                self.ran = True
                if action.stage in self.names:
                    yield from self._program(action)

    def _moment(self, stage: str, label: str, taken: int) -> Moment:
        return Moment(stage=stage, action=label, held={**self.held, TEMPORARIES: taken}, host=self.host)

    def _call(self, stage: str, program: str, label: str, *, fresh: bool = True) -> Iterator[Moment]:
        """A moment for a program that the stage has; without `fresh` its results are counted already."""
        call = self.stages[stage].calls.get(program)
        if call is not None:
            yield self._moment(stage, label, call.total if fresh else call.temporary)

    def _program(self, action: Action) -> Iterator[Moment]:
        name = action.stage
        own, graph = self.stages[name], self.schedule.graph
        if own.late_gradients and action.kind in ENDS_MICROBATCH and self.left[name] == self.schedule.count(name):
            yield from self._call(name, "zeros", "zeros")
            self.held["gradients"] += own.persistent["gradients"]
        yield self._moment(name, str(action), own.calls.get(action.kind.value, NOTHING).total)
        self._left_for_host()
        match action.kind:
            case Kind.FORWARD:
                self.held[CROSSING] -= own.batch
                self.held[CROSSING] -= sum(self.links[edge.name].destination for edge in graph.inputs(name))
                self.held[RESIDUALS] += own.residuals if graph.stage(name).backward else 0
                # Outputs that are cut lie there until all are.
                cut = [self.links[edge.name] for edge in graph.outputs(name) if graph.ratio(edge) > 1]
                windows = sum({link.port: link.source for link in cut}.values())
                for edge in graph.outputs(name):
                    yield from self._leave(edge, action, windows)
            case Kind.BACKWARD | Kind.BACKWARD_INPUT:
                self.held[RESIDUALS] -= own.residuals
                backwards = [edge for edge in graph.outputs(name) if edge.backward]
                self.held[CROSSING] -= sum(self.links[edge.name].source for edge in backwards)
                backwards = [edge for edge in graph.inputs(name) if edge.backward]
                self.held[CROSSING] += sum(self.links[edge.name].destination for edge in backwards)
                self.held[RESIDUALS] += own.pending if action.kind is Kind.BACKWARD_INPUT else 0
            case Kind.BACKWARD_WEIGHT:
                self.held[RESIDUALS] -= own.pending
            case Kind.UPDATE:
                self.held["gradients"] -= own.reduced
        if action.kind in ENDS_MICROBATCH:
            self.left[name] -= 1
            if not self.left[name]:
                yield from self._call(name, "reduce", "reduce")
                self.held["gradients"] += own.reduced - own.persistent["gradients"]
                yield from self._call(name, "end_of_step", "end of step")

    def _host_copy(self, action: Action) -> Iterator[Moment]:
        if action.stage not in self.names:
            return
        moved = self.stages[action.stage].moved(action.part)
        if action.kind is Kind.OFFLOAD:
            self.leaving.update(moved)
            self.ran = False
            self.host += sum(moved.values())
            yield self._moment(action.stage, str(action), 0)
            return
        # A device that ran nothing while others did had the time to let go of it.
        if self.ran:
            self._left_for_host()
        yield self._moment(action.stage, str(action), sum(moved.values()))
        self.held.update(moved)
        self.host -= sum(moved.values())

    def _left_for_host(self) -> None:
        self.held.subtract(self.leaving)
        self.leaving.clear()

    def _leave(self, edge: StageEdge, action: Action, windows: int) -> Iterator[Moment]:
        """An output has been made, an array for all links of its port, but for those that cut it.

        `windows` are the bytes of all outputs that links cut.
        """
        link, port = self.links[edge.name], (action.stage, self.links[edge.name].port, action.microbatch)
        if self.schedule.graph.ratio(edge) > 1:
            if link.cut.total:
                yield self._moment(action.stage, f"{action} cut", windows + link.cut.total)
            self.held[CROSSING] += link.source
        else:
            self.held[CROSSING] += 0 if self.waiting[port] else link.source
            self.waiting[port] += 1

    def _transfer(self, action: Action) -> Iterator[Moment]:
        edge, link = self.schedule.graph.edge(action.edge), self.links[action.edge]
        ends = {"source": edge.source in self.names, "destination": edge.destination in self.names}
        arrives, leaves = ("source", "destination") if action.backward else ("destination", "source")
        if not any(ends.values()):
            return
        shares = link.shares and all(ends.values())
        taken = sum(link.calls.get((end, action.backward), NOTHING).total for end in ends if ends[end])
        ratio = self.schedule.graph.ratio(edge)
        arriving = self._arriving(action, link, ratio)
        if ends[arrives] and not shares:
            taken += arriving
        yield self._moment(action.stage, str(action), taken)
        if ends[arrives]:
            self.held[CROSSING] += arriving
        if ends[leaves]:
            self.held[CROSSING] -= self._left(action, link, ratio)
        if action.backward and ends["source"] and (action.microbatch + 1) % ratio == 0 and link.join.total:
            yield self._moment(action.stage, f"{action} join", link.join.total)

    def _arriving(self, action: Action, link: LinkBytes, ratio: int) -> int:
        """Bytes that a transfer brings to a device."""
        if not action.backward:
            return link.destination
        return self._of_window(action, link, ratio)

    def _of_window(self, action: Action, link: LinkBytes, ratio: int) -> int:
        """Bytes of a microbatch of a window at the source; its devices with the last microbatches stand for all."""
        return link.source // link.pieces if action.microbatch % ratio >= ratio - link.pieces else 0

    def _left(self, action: Action, link: LinkBytes, ratio: int) -> int:
        """Bytes that a transfer leaves free where it began; other links of the port may still need the array."""
        if action.backward:
            return link.destination
        if ratio > 1:
            return self._of_window(action, link, ratio)
        port = (action.stage, link.port, action.microbatch)
        self.waiting[port] -= 1
        return 0 if self.waiting[port] else link.source
