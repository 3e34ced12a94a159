"""A schedule is data: the actions of one training step, in the one order in which they are dispatched."""

from __future__ import annotations

import enum
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Container, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from hetjax.schedule.graph import StageEdge, StageGraph


class Kind(enum.Enum):
    """The kinds of actions; BACKWARD_INPUT and BACKWARD_WEIGHT are the two halves of a BACKWARD.

    OFFLOAD copies to the memory of the host and frees that of the devices, RELOAD copies back.
    """

    FORWARD = "forward"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"
    TRANSFER = "transfer"
    OFFLOAD = "offload"
    RELOAD = "reload"
    UPDATE = "update"


class Part(enum.Enum):
    """What of a stage a host copy moves.

    RESIDUALS: what one microbatch keeps between its forward and its backward. WEIGHTS: those that programs compute
    with. OPTIMIZER: what the update alone reads, its own state and master weights that no program computes with.
    """

    RESIDUALS = "residuals"
    WEIGHTS = "weights"
    OPTIMIZER = "optimizer"


_LETTERS = {Kind.FORWARD: "F", Kind.BACKWARD: "B", Kind.BACKWARD_INPUT: "I", Kind.BACKWARD_WEIGHT: "W"}
GIVES_GRADIENT = frozenset({Kind.BACKWARD, Kind.BACKWARD_INPUT})
"""The kinds that make the gradients of a stage's inputs."""
ENDS_MICROBATCH = frozenset({Kind.BACKWARD, Kind.BACKWARD_WEIGHT})
"""The kinds after which a stage keeps nothing of a microbatch."""
HOST_COPIES = frozenset({Kind.OFFLOAD, Kind.RELOAD})
"""The kinds that move something between the memory of devices and that of their hosts."""
PROGRAMS = frozenset({Kind.FORWARD, Kind.BACKWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT})
"""The kinds that run a program on a microbatch."""

Split = Collection[tuple[str, int]]
"""The (stage, microbatch) whose backward is split in two."""


@dataclass(frozen=True)
class Action:
    """One entry of a schedule: run a program of `stage`, or move the tensor of `edge`, for one microbatch.

    FORWARD and BACKWARD run `stage` on `microbatch`, a number of the stage's own, which holds `window` microbatches of
    the loss. A backward may be split: BACKWARD_INPUT makes the gradients of the stage's inputs, which others wait for,
    and BACKWARD_WEIGHT, any time later, those of its weights, which only the update reads. TRANSFER moves the tensor of
    `edge` away from `stage`, for one microbatch of the edge's destination: the activation from the edge's source, or
    with `backward=True` the gradient from the edge's destination back to its source. OFFLOAD and RELOAD move a `part`
    of `stage`, the residuals of a microbatch or, with `microbatch` None, what it has but once. UPDATE applies the
    optimizer to `stage`; its `microbatch` is None.

    As text: "F0", "B0", "I0", "W0", "T0:vision->llm" (activation), "TB0:vision->llm" (gradient), "O0:residuals",
    "R:weights", "update".
    """

    kind: Kind
    stage: str
    microbatch: int | None = None
    edge: str | None = field(default=None, kw_only=True)
    backward: bool = field(default=False, kw_only=True)
    part: Part | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        if self.kind is Kind.UPDATE:
            return "update"
        if self.kind is Kind.TRANSFER:
            return f"{'TB' if self.backward else 'T'}{self.microbatch}:{self.edge}"
        if self.kind in HOST_COPIES:
            index = "" if self.microbatch is None else self.microbatch
            return f"{'O' if self.kind is Kind.OFFLOAD else 'R'}{index}:{self.part.value}"
        return f"{_LETTERS[self.kind]}{self.microbatch}"


def forward(stage: str, microbatch: int) -> Action:
    """Run the forward program of a stage."""
    return Action(Kind.FORWARD, stage, microbatch)


def backward(stage: str, microbatch: int) -> Action:
    """Run the backward program of a stage."""
    return Action(Kind.BACKWARD, stage, microbatch)


def backward_input(stage: str, microbatch: int) -> Action:
    """Make the gradients of a stage's inputs."""
    return Action(Kind.BACKWARD_INPUT, stage, microbatch)


def backward_weight(stage: str, microbatch: int) -> Action:
    """Make the gradients of a stage's weights, after those of its inputs."""
    return Action(Kind.BACKWARD_WEIGHT, stage, microbatch)


def transfer(edge: StageEdge, microbatch: int, *, backward: bool = False) -> Action:
    """Move an edge's activation to its destination, or with `backward` its gradient to its source."""
    origin = edge.destination if backward else edge.source
    return Action(Kind.TRANSFER, origin, microbatch, edge=edge.name, backward=backward)


def offload(stage: str, part: Part, microbatch: int | None = None) -> Action:
    """Copy a part of a stage to the memory of the host, and free that of the devices."""
    return Action(Kind.OFFLOAD, stage, microbatch, part=part)


def reload(stage: str, part: Part, microbatch: int | None = None) -> Action:
    """Copy a part of a stage back to its devices."""
    return Action(Kind.RELOAD, stage, microbatch, part=part)


def update(stage: str) -> Action:
    """Apply the optimizer to a stage."""
    return Action(Kind.UPDATE, stage)


def crossings(graph: StageGraph, edge: StageEdge, microbatch: int) -> range:
    """Return the microbatches of an edge's destination that lie in one of its source."""
    ratio = graph.ratio(edge)
    return range(microbatch * ratio, (microbatch + 1) * ratio)


def needs(graph: StageGraph, microbatches: int, action: Action, split: Split = ()) -> tuple[Action, ...]:
    """Return the actions whose results an action reads, where the backwards in `split` are in two parts.

    Host copies are no part of it; `Schedule.needs` has them. An update reads the gradients of every stage, because
    gradients are clipped by their norm over all modules.
    """
    stage, index = action.stage, action.microbatch
    match action.kind:
        case Kind.FORWARD:
            return tuple(transfer(edge, index) for edge in graph.inputs(stage))
        case Kind.BACKWARD | Kind.BACKWARD_INPUT:
            outputs = (edge for edge in graph.outputs(stage) if edge.backward)
            crossed = (transfer(edge, i, backward=True) for edge in outputs for i in crossings(graph, edge, index))
            return (forward(stage, index), *crossed)
        case Kind.BACKWARD_WEIGHT:
            return (backward_input(stage, index),)
        case Kind.TRANSFER:
            if not action.backward:
                return (forward(stage, index // graph.ratio(graph.edge(action.edge))),)
            return ((backward_input if (stage, index) in split else backward)(stage, index),)
        case Kind.UPDATE:
            stages = (node.name for node in graph.stages if node.backward)
            return tuple(
                (backward_weight if (name, index) in split else backward)(name, index)
                for name in stages
                for index in range(graph.count(name, microbatches))
            )
    return ()


def parts_used(action: Action) -> tuple[tuple[Part, int | None], ...]:
    """Return what of its stage an action makes or reads that a host copy may move, with the microbatch."""
    residuals = (Part.RESIDUALS, action.microbatch)
    match action.kind:
        case Kind.FORWARD | Kind.BACKWARD | Kind.BACKWARD_INPUT:
            return (Part.WEIGHTS, None), residuals
        case Kind.BACKWARD_WEIGHT:
            return ((Part.WEIGHTS, None),)
        case Kind.UPDATE:
            return (Part.WEIGHTS, None), (Part.OPTIMIZER, None)
    return ()


def copy_needs(actions: Sequence[Action]) -> dict[Action, list[Action]]:
    """Return what host copies add to the needs of actions.

    A copy out needs the actions before it that use what it moves, a copy back the copy out, and the actions behind it
    that use it the copy back.
    """
    found: dict[Action, list[Action]] = defaultdict(list)
    users: dict[tuple[str, Part, int | None], list[Action]] = defaultdict(list)
    for action in actions:
        if action.kind in HOST_COPIES:
            key = (action.stage, action.part, action.microbatch)
            found[action] += users.pop(key, [])
            users[key] = [action]
        for part, index in parts_used(action):
            before = users[action.stage, part, index]
            found[action] += [copy for copy in before if copy.kind is Kind.RELOAD]
            before.append(action)
    return found


def sends(graph: StageGraph, action: Action, done: Container[Action]) -> tuple[Action, ...]:
    """Return the transfers that go out behind an action: outputs of a forward, input gradients of a backward.

    Of a window's output a microbatch goes out as soon as it is made and the reader has begun the one before, so that
    no more than one waits at the reader; gradients go back one by one. On an edge that carries them `at_once` all go
    out behind the forward, and all go back behind the last backward. `done` holds what has been done, with the action.
    """
    stage, index = action.stage, action.microbatch
    if action.kind is Kind.FORWARD:
        made = [transfer(edge, i) for edge in graph.outputs(stage) for i in _ready(graph, edge, index, done)]
        read = [edge for edge in graph.inputs(stage) if graph.ratio(edge) > 1 and not edge.at_once]
        return (*made, *(transfer(edge, index + 1) for edge in read if _makes(graph, edge, index + 1) in done))
    if action.kind in GIVES_GRADIENT:
        inputs = [edge for edge in graph.inputs(stage) if edge.backward]
        return tuple(transfer(edge, i, backward=True) for edge in inputs for i in _returned(graph, edge, index, done))
    return ()


def _makes(graph: StageGraph, edge: StageEdge, index: int) -> Action:
    """Return the forward that makes an edge's tensor for a microbatch of its destination."""
    return forward(edge.source, index // graph.ratio(edge))


def _ready(graph: StageGraph, edge: StageEdge, index: int, done: Container[Action]) -> Sequence[int]:
    """Return which of the destination's microbatches go out behind the source's forward."""
    made = crossings(graph, edge, index)
    if len(made) == 1 or edge.at_once:
        return made
    return made[:1] if made[0] == 0 or forward(edge.destination, made[0] - 1) in done else ()


def _returned(graph: StageGraph, edge: StageEdge, index: int, done: Container[Action]) -> Sequence[int]:
    """Return which of the destination's microbatches have their gradients go back behind one backward."""
    if not edge.at_once:
        return (index,)
    window = crossings(graph, edge, index // graph.ratio(edge))
    made = (backward(edge.destination, i) in done or backward_input(edge.destination, i) in done for i in window)
    return window if all(made) else ()


def split_backwards(actions: Sequence[Action]) -> frozenset[tuple[str, int]]:
    """Return the (stage, microbatch) whose backward comes in two parts."""
    return frozenset((a.stage, a.microbatch) for a in actions if a.kind is Kind.BACKWARD_INPUT)


def pieces(graph: StageGraph, action: Action) -> tuple[tuple[Hashable, ...], ...]:
    """Return the devices of a program in groups that start together: all in one, or each alone on an independent stage.

    All devices start an update together, on an independent stage too, because it sums what they hold.
    """
    devices = graph.occupies(action.stage)
    if graph.stage(action.stage).independent and action.kind not in (Kind.TRANSFER, Kind.UPDATE):
        return tuple((device,) for device in devices)
    return (devices,)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The actions of one training step over `graph` with `microbatches` microbatches of the loss, in dispatch order."""

    name: str
    graph: StageGraph
    microbatches: int
    actions: tuple[Action, ...]

    def on(self, stage: str) -> tuple[Action, ...]:
        """Return the programs that a stage runs, in order; transfers and host copies are left out."""
        name = self.graph.stage(stage).name
        programs = PROGRAMS | {Kind.UPDATE}
        return tuple(action for action in self.actions if action.stage == name and action.kind in programs)

    def count(self, stage: str) -> int:
        """Return how many microbatches of its own a stage has."""
        return self.graph.count(stage, self.microbatches)

    @property
    def label(self) -> str:
        """Return name and microbatches in words, e.g. "1f1b, 8 microbatches (vision 2)"."""
        modules = {stage.module: self.count(stage.name) for stage in self.graph.stages if stage.window > 1}
        others = f" ({', '.join(f'{module} {count}' for module, count in modules.items())})" if modules else ""
        return f"{self.name}, {self.microbatches} microbatches{others}"

    @cached_property
    def split(self) -> frozenset[tuple[str, int]]:
        """Return the (stage, microbatch) whose backward comes in two parts."""
        return split_backwards(self.actions)

    def needs(self, action: Action) -> tuple[Action, ...]:
        """Return the actions whose results an action reads."""
        return (*needs(self.graph, self.microbatches, action, self.split), *self._copy_needs.get(action, ()))

    @cached_property
    def _copy_needs(self) -> dict[Action, list[Action]]:
        return copy_needs(self.actions)

    def digest(self) -> str:
        """Return a sha256, equal exactly where name, graph, microbatches and total order are equal.

        Processes of one run compare it before the first step: two that dispatch shared programs in
        different orders would wait for each other forever.
        """
        actions = [
            [a.kind.value, a.stage, a.microbatch, a.edge, a.backward, a.part and a.part.value] for a in self.actions
        ]
        text = json.dumps([self.name, asdict(self.graph), self.microbatches, actions], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
