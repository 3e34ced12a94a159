"""Orders of the programs of encoders among those of a pipeline, and how long each takes.

An order is a list of *streams*: the programs of one mesh of the pipeline, or the forwards or the backwards of
one encoder stage. The k-th time that a stream stands in an order, its k-th program runs. So whatever an
order is, the pipeline keeps its own, and the microbatches of an encoder come one after another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hetjax.schedule.actions import Action, Kind, needs, pieces
from hetjax.schedule.graph import StageGraph
from hetjax.schedule.simulate import Costs

Order = list[int]  # streams
_PROGRAMS = 1_000_000  # simulated in all orders that `improve` judges: a second or so
_NEVER = (math.inf, math.inf)


@dataclass(frozen=True)
class Program:
    """One program: its seconds, the programs it waits for with the seconds of their transfers, and where it runs.

    `pieces` are groups of kinds of devices; those of a group start together.
    """

    action: Action
    seconds: float
    needs: tuple[tuple[int, float], ...]
    pieces: tuple[tuple[int, ...], ...]

    def starts(self, free: Sequence[float], ended: Mapping[int, float]) -> list[float]:
        """Return when each piece starts, if devices are free and programs have ended then."""
        ready = max([0.0, *(ended[need] + delay for need, delay in self.needs)])
        return [max(ready, *(free[kind] for kind in piece)) for piece in self.pieces]


@dataclass(frozen=True, kw_only=True)
class Filling:
    """A pipeline, whose meshes keep their orders, and encoders, whose programs may go anywhere between.

    Attributes:
        graph, microbatches, costs: what is scheduled, and what its actions take.
        pipeline: the programs of each mesh of the language model, in their order.
        encoders: the forwards, or the backwards, of each encoder stage, in their order.
    """

    graph: StageGraph
    microbatches: int
    costs: Costs
    pipeline: Sequence[Sequence[Action]]
    encoders: Sequence[Sequence[Action]]

    @cached_property
    def streams(self) -> tuple[tuple[int, ...], ...]:
        """Return the places in `programs` of each stream's programs; those of the pipeline come first."""
        found, start = [], 0
        for stream in (*self.pipeline, *self.encoders):
            found.append(tuple(range(start, start + len(stream))))
            start += len(stream)
        return tuple(found)

    @cached_property
    def places(self) -> dict[Action, int]:
        """Return the place of each action in `programs`."""
        actions = (action for stream in (*self.pipeline, *self.encoders) for action in stream)
        return {action: place for place, action in enumerate(actions)}

    @cached_property
    def programs(self) -> tuple[Program, ...]:
        """Return all programs, stream by stream."""
        return tuple(self._program(action) for action in self.places)

    @cached_property
    def kinds(self) -> dict[Hashable, int]:
        """Number the devices by kind: those that hold the same stages act alike, so that one stands for all."""
        hosts: dict[Hashable, list[str]] = {}
        for stage in self.graph.stages:
            for device in self.graph.occupies(stage.name):
                hosts.setdefault(device, []).append(stage.name)
        numbers: dict[tuple[str, ...], int] = {}
        return {device: numbers.setdefault(tuple(names), len(numbers)) for device, names in hosts.items()}

    def _program(self, action: Action) -> Program:
        waits = []
        for need in needs(self.graph, self.microbatches, action):
            if need.kind is Kind.TRANSFER:
                (origin,) = needs(self.graph, self.microbatches, need)
                waits.append((self.places[origin], self.costs.seconds(need)))
            else:
                waits.append((self.places[need], 0.0))
        groups = (tuple(dict.fromkeys(self.kinds[d] for d in piece)) for piece in pieces(self.graph, action))
        return Program(action, self.costs.seconds(action), tuple(waits), tuple(dict.fromkeys(groups)))

    def order_of(self, actions: Sequence[Action]) -> Order | None:
        """Return the order of a schedule's actions; None where it has the programs of a stream in another one."""
        stream_of = {place: stream for stream, places in enumerate(self.streams) for place in places}
        listed = [self.places[action] for action in actions if action in self.places]
        order = [stream_of[place] for place in listed]
        return order if list(self._walk(order)) == listed else None

    def timed(self, order: Order) -> list[tuple[Action, float, float]]:
        """Return the programs in this order, each with the start of its first piece and the end of its last."""
        times: list[tuple[float, float]] = []
        self._run(order, times)
        return [(self.programs[place].action, *when) for place, when in zip(self._walk(order), times, strict=True)]

    def judge(self, order: Order) -> tuple[float, float]:
        """Return when the last device ends, and the sum over kinds of when each ends; infinite for an illegal order."""
        return self._run(order, None)

    def improve(self, order: Order) -> Order:
        """Move one encoder program at a time, as long as that makes the order better by `judge`."""
        best, left = self.judge(order), _PROGRAMS // len(order)
        steps = [1 << power for power in reversed(range(len(order).bit_length() - 1))]
        better = True
        while better and left > 0:
            better = False
            for step, place in itertools.product(steps, range(len(order))):
                if order[place] < len(self.pipeline):
                    continue
                for target in (place + step, place - step):
                    if not 0 <= target < len(order) or left <= 0:
                        continue
                    other = [*order[:place], *order[place + 1 :]]
                    other.insert(target, order[place])
                    left -= 1
                    found = self.judge(other)
                    if found < best:
                        best, order, better = found, other, True
        return order

    def _walk(self, order: Order) -> Iterator[int]:
        ahead = [iter(stream) for stream in self.streams]
        return (next(ahead[stream]) for stream in order)

    def _run(self, order: Order, times: list[tuple[float, float]] | None) -> tuple[float, float]:
        """Simulate an order. This is where the search spends its time, hence the plain loops."""
        free = [0.0] * (max(self.kinds.values()) + 1)
        ended: list[float | None] = [None] * len(self.programs)
        programs = self.programs
        for place in self._walk(order):
            program, ready = programs[place], 0.0
            for need, delay in program.needs:
                if ended[need] is None:
                    return _NEVER
                ready = max(ready, ended[need] + delay)
            first, last = math.inf, 0.0
            for piece in program.pieces:
                start = max(ready, max([free[kind] for kind in piece]))
                for kind in piece:
                    free[kind] = start + program.seconds
                first, last = min(first, start), max(last, start)
            ended[place] = last + program.seconds
            if times is not None:
                times.append((first, ended[place]))
        return max(free), math.fsum(free)
