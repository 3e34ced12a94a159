"""The state of a step that is walked action by action: the tensors that exist, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from hetjax.schedule.actions import (
    ENDS_MICROBATCH,
    GIVES_GRADIENT,
    HOST_COPIES,
    Action,
    Kind,
    Part,
    Schedule,
    crossings,
    offload,
    parts_used,
    reload,
)

Queue = tuple[str, bool]  # an edge's name, and whether it is the queue of its gradients


@dataclass
class Execution:
    """The state of a step at one moment.

    Attributes:
        schedule: what is walked.
        live: for each stage, the microbatches whose forward has run and whose backward has not ended.
        made: tensors made and not yet sent, by queue and microbatch.
        queues: the microbatches sent over each queue and not yet read.
        returned: for each stage, the microbatches whose input gradients are made.
        backwards: how many microbatches each stage has ended.
        in_host: what lies in the memory of the host: stage, part, and the microbatch of residuals.
        pieces_run: devices that have run an action of which others still have to run their pieces.
        peak_live, peak_queued: the most that `live` and `queues` have held.
    """

    schedule: Schedule
    live: dict[str, set[int]] = field(default_factory=dict)
    made: set[tuple[Queue, int]] = field(default_factory=set)
    queues: dict[Queue, set[int]] = field(default_factory=dict)
    returned: dict[str, set[int]] = field(default_factory=dict)
    backwards: Counter[str] = field(default_factory=Counter)
    in_host: set[tuple[str, Part, int | None]] = field(default_factory=set)
    pieces_run: dict[Action, int] = field(default_factory=dict)
    peak_live: dict[str, int] = field(default_factory=dict)
    peak_queued: Counter[Queue] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.live = {stage.name: set() for stage in self.schedule.graph.stages}
        self.returned = {stage.name: set() for stage in self.schedule.graph.stages}
        self.peak_live = {stage.name: 0 for stage in self.schedule.graph.stages}

    def queued(self, edge: str, backward: bool) -> set[int]:
        """Return the microbatches that an edge holds, sent and not yet read: activations, or gradients."""
        return self.queues.setdefault((edge, backward), set())

    def edge_peaks(self) -> dict[str, int]:
        """Return the most microbatches that each edge has held, of activations or of gradients."""
        return {
            e.name: max(self.peak_queued[e.name, False], self.peak_queued[e.name, True])
            for e in self.schedule.graph.edges
        }

    def lacking(self, action: Action) -> list[str]:
        """Return what an action needs and does not find, in words."""
        stage, index = action.stage, action.microbatch
        if action.kind is Kind.TRANSFER:
            made = ((action.edge, action.backward), index) in self.made
            letter = "F" if not action.backward else "I" if (stage, index) in self.schedule.split else "B"
            return [] if made else [f"{letter}{index} of stage {stage!r}"]
        if action.kind in HOST_COPIES:
            return self._lacking_of_copy(action)
        away = [key for key in parts_used(action) if (stage, *key) in self.in_host]
        if away:
            return [f"{reload(stage, *key)} of stage {stage!r}" for key in away]
        if action.kind is Kind.UPDATE:
            left = {
                s.name: self.schedule.count(s.name) - self.backwards[s.name]
                for s in self.schedule.graph.stages
                if s.backward
            }
            return [f"{count} more backwards of stage {name!r}" for name, count in left.items() if count]
        unsent = [(queue, i) for queue, i in self._reads(action) if i not in self.queued(*queue)]
        lacking = [f"{'TB' if backward else 'T'}{i}:{edge}" for (edge, backward), i in unsent]
        if action.kind in GIVES_GRADIENT and index not in self.live[stage]:
            lacking.insert(0, f"F{index} of stage {stage!r}")
        if action.kind is Kind.BACKWARD_WEIGHT and index not in self.returned[stage]:
            lacking.append(f"I{index} of stage {stage!r}")
        return lacking

    def _lacking_of_copy(self, action: Action) -> list[str]:
        """Return what a host copy needs: residuals that exist, and where it copies back something to copy."""
        stage, part, index = action.stage, action.part, action.microbatch
        if action.kind is Kind.RELOAD:
            away = (stage, part, index) in self.in_host
            return [] if away else [f"{offload(stage, part, index)} of stage {stage!r}"]
        # Of a backward in two parts the first reads them.
        exist = part is not Part.RESIDUALS or (index in self.live[stage] and index not in self.returned[stage])
        return (
            [] if exist else [f"residuals of microbatch {index} of stage {stage!r}, between F{index} and its backward"]
        )

    def run_piece(self, action: Action, devices: tuple[Hashable, ...]) -> None:
        """Run an action on some of its devices; with the last of them it is done."""
        run = self.pieces_run.pop(action, 0) + len(devices)
        if run == len(self.schedule.graph.occupies(action.stage)):
            self.run(action)
        else:
            self.pieces_run[action] = run

    def run(self, action: Action) -> None:
        """Remove what an action reads, and add what it makes."""
        stage, index = action.stage, action.microbatch
        if action.kind in HOST_COPIES:
            change = self.in_host.add if action.kind is Kind.OFFLOAD else self.in_host.remove
            change((stage, action.part, index))
            return
        if action.kind is Kind.TRANSFER:
            key = (action.edge, action.backward)
            self.made.remove((key, index))
            self.queued(*key).add(index)
            self.peak_queued[key] = max(self.peak_queued[key], len(self.queued(*key)))
            return
        for queue, i in self._reads(action):
            self.queued(*queue).remove(i)
        if action.kind is Kind.FORWARD:
            graph = self.schedule.graph
            self.made |= {((e.name, False), i) for e in graph.outputs(stage) for i in crossings(graph, e, index)}
            if self.schedule.graph.stage(stage).backward:
                self.live[stage].add(index)
                self.peak_live[stage] = max(self.peak_live[stage], len(self.live[stage]))
        if action.kind in GIVES_GRADIENT:
            self.made |= {((edge.name, True), index) for edge in self.schedule.graph.inputs(stage) if edge.backward}
            self.returned[stage].add(index)
        if action.kind in ENDS_MICROBATCH:
            self.live[stage].remove(index)
            self.backwards[stage] += 1

    def _reads(self, action: Action) -> list[tuple[Queue, int]]:
        """Return the queues that a forward or a backward takes from, and the microbatches that it takes from each."""
        graph, index = self.schedule.graph, action.microbatch
        if action.kind is Kind.FORWARD:
            return [((edge.name, False), index) for edge in graph.inputs(action.stage)]
        if action.kind in GIVES_GRADIENT:
            outputs = [edge for edge in graph.outputs(action.stage) if edge.backward]
            return [((edge.name, True), i) for edge in outputs for i in crossings(graph, edge, index)]
        return []
