"""The graph that a schedule is made for: pipeline stages, and the tensors that cross between them.

A module with one stage is one node of the same name; a module cut into pipeline stages is one node a
stage ("llm.0", "llm.1", ...), joined by edges for the hidden states. Nothing here knows about arrays.
"""

from __future__ import annotations

import graphlib
import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hetjax.errors import ScheduleError


@dataclass(frozen=True, kw_only=True)
class StageNode:
    """One pipeline stage of a module, on a mesh: one of its own, or one that several stages of the module share.

    `devices` are the global ids of the devices of its mesh; stages that share a device never run at the
    same time. An empty tuple means one device that no other stage has. `backward=False` marks a stage
    that is frozen and has nothing trainable upstream, so it has no backward program; `update=False`
    marks frozen weights. `independent=True` says that no collective runs inside its programs, so that
    each device can run its *piece* of them whenever it is free. `window` is how many microbatches of the loss
    a program of the stage takes at once: of m microbatches it has m / window of its own, numbered from 0. `loss=True`
    marks a stage that holds a loss; one alone without outputs holds one in any case.
    """

    name: str
    module: str
    index: int
    backward: bool = True
    update: bool = True
    devices: tuple[int, ...] = ()
    independent: bool = False
    window: int = 1
    loss: bool = False


@dataclass(frozen=True, kw_only=True)
class StageEdge:
    """One tensor that crosses from stage `source` to stage `destination` in every microbatch of the destination.

    `backward` says whether a gradient crosses it in the other direction. `at_once` says that the microbatches of a
    window cross together, as is best where a transfer keeps both ends busy: the source may be in the middle of a long
    program when the destination needs the next one.
    """

    name: str
    source: str
    destination: str
    backward: bool = True
    at_once: bool = False


@dataclass(frozen=True, kw_only=True)
class StageGraph:
    """Stages in topological order and the edges between them; those without outputs hold losses.

    Raises:
        ScheduleError: duplicate or unknown names, a cycle, stages out of topological order, several without
            outputs that do not all hold a loss, flags that contradict each other (a gradient nobody makes or nobody
            uses), or windows that do not divide.
    """

    stages: tuple[StageNode, ...]
    edges: tuple[StageEdge, ...]

    def __post_init__(self) -> None:
        _check_names(self)
        _check_order(self)
        _check_gradients(self)
        _check_windows(self)

    @classmethod
    def chain(cls, names: Sequence[str]) -> StageGraph:
        """Build a chain of stages, each a trainable module of its own, each on a mesh of its own."""
        stages = tuple(StageNode(name=name, module=name, index=0) for name in names)
        pairs = itertools.pairwise(names)
        edges = tuple(StageEdge(name=f"{a}->{b}", source=a, destination=b) for a, b in pairs)
        return cls(stages=stages, edges=edges)

    @property
    def sink(self) -> StageNode:
        """Return the last stage, that of the loss around which schedules are made."""
        return self.stages[-1]

    def stage(self, name: str) -> StageNode:
        """Return the stage of that name; raises ScheduleError that lists the known ones."""
        if name not in self._stages:
            raise ScheduleError(f"unknown stage {name!r}; the stages are {', '.join(self._stages)}")
        return self._stages[name]

    def edge(self, name: str) -> StageEdge:
        """Return the edge of that name; raises ScheduleError that lists the known ones."""
        if name not in self._edges:
            raise ScheduleError(f"unknown edge {name!r}; the edges are {', '.join(self._edges) or '(none)'}")
        return self._edges[name]

    def inputs(self, stage: str) -> tuple[StageEdge, ...]:
        """Return the edges that end at a stage, in the graph's order."""
        return self._inputs[self.stage(stage).name]

    def outputs(self, stage: str) -> tuple[StageEdge, ...]:
        """Return the edges that start at a stage, in the graph's order."""
        return self._outputs[self.stage(stage).name]

    def depth(self, stage: str) -> int:
        """Return the number of edges on the longest path from a stage to one without outputs, of which it is 0."""
        return self._depths[self.stage(stage).name]

    def count(self, stage: str, microbatches: int) -> int:
        """Return how many microbatches of its own a stage has, of those of the loss."""
        return microbatches // self.stage(stage).window

    def ratio(self, edge: StageEdge) -> int:
        """Return how many microbatches of an edge's destination lie in one of its source."""
        return self.stage(edge.source).window // self.stage(edge.destination).window

    def lead(self, stage: str) -> int:
        """Return how many microbatches of its own a stage runs forward before its first backward in 1F1B.

        As many as its readers take before they give that gradient back, and one more, so that they need not wait for
        the next while the stage runs the backward: depth + 1 without windows.
        """
        return self._leads[self.stage(stage).name]

    def splits(self, stage: str) -> bool:
        """Return whether a stage's backward has two parts: it trains, and it gives a gradient to an input."""
        return self.stage(stage).update and any(edge.backward for edge in self.inputs(stage))

    def occupies(self, stage: str) -> tuple[Hashable, ...]:
        """Return what a stage keeps busy while it runs: its devices, or its own name where none are given."""
        return self.stage(stage).devices or (stage,)

    @cached_property
    def meshes(self) -> tuple[tuple[StageNode, ...], ...]:
        """Return the stages grouped by mesh: those with exactly the same devices together, in the graph's order."""
        groups: dict[tuple[Hashable, ...], list[StageNode]] = {}
        for stage in self.stages:
            groups.setdefault(self.occupies(stage.name), []).append(stage)
        return tuple(tuple(group) for group in groups.values())

    @cached_property
    def _stages(self) -> dict[str, StageNode]:
        return {stage.name: stage for stage in self.stages}

    @cached_property
    def _edges(self) -> dict[str, StageEdge]:
        return {edge.name: edge for edge in self.edges}

    @cached_property
    def _inputs(self) -> dict[str, tuple[StageEdge, ...]]:
        return {s.name: tuple(edge for edge in self.edges if edge.destination == s.name) for s in self.stages}

    @cached_property
    def _outputs(self) -> dict[str, tuple[StageEdge, ...]]:
        return {s.name: tuple(edge for edge in self.edges if edge.source == s.name) for s in self.stages}

    @cached_property
    def _depths(self) -> dict[str, int]:
        depths: dict[str, int] = {}
        for stage in reversed(self.stages):
            outputs = self._outputs[stage.name]
            depths[stage.name] = max((depths[edge.destination] + 1 for edge in outputs), default=0)
        return depths

    @cached_property
    def _leads(self) -> dict[str, int]:
        leads: dict[str, int] = {}
        for stage in reversed(self.stages):
            ratios = {edge.destination: self.ratio(edge) for edge in self._outputs[stage.name]}
            taken = (-(-(ratio - 1 + leads[reader]) // ratio) for reader, ratio in ratios.items())
            leads[stage.name] = 1 + max(taken, default=0)
        return leads


def _check_names(graph: StageGraph) -> None:
    if not graph.stages:
        raise ScheduleError("a stage graph needs at least one stage; it was given none")
    for what, values in (
        ("stage name", [stage.name for stage in graph.stages]),
        ("stage (module, index)", [(stage.module, stage.index) for stage in graph.stages]),
        ("edge name", [edge.name for edge in graph.edges]),
    ):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise ScheduleError(f"{what} {repeated[0]!r} is used {values.count(repeated[0])} times; make it unique")
    known = [stage.name for stage in graph.stages]
    for edge in graph.edges:
        for end in ("source", "destination"):
            name = getattr(edge, end)
            if name not in known:
                raise ScheduleError(
                    f"edge {edge.name!r}: its {end} {name!r} is not a stage; the stages are {', '.join(known)}"
                )


def _check_order(graph: StageGraph) -> None:
    sources: dict[str, list[str]] = {stage.name: [] for stage in graph.stages}
    for edge in graph.edges:
        sources[edge.destination].append(edge.source)
    try:
        order = tuple(graphlib.TopologicalSorter(sources).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise ScheduleError(f"the stages {cycle} form a cycle; a pipeline needs a graph without cycles") from None
    position = {stage.name: index for index, stage in enumerate(graph.stages)}
    for edge in graph.edges:
        if position[edge.source] > position[edge.destination]:
            raise ScheduleError(
                f"edge {edge.name!r}: its source {edge.source!r} is listed after its destination "
                f"{edge.destination!r}; list the stages in topological order, for example {', '.join(order)}"
            )
    feeding = {edge.source for edge in graph.edges}
    ends = [stage for stage in graph.stages if stage.name not in feeding]
    if len(ends) > 1 and not all(stage.loss for stage in ends):
        raise ScheduleError(
            f"several stages without outputs hold a loss each, but {', '.join(s.name for s in ends)} have none and not "
            "all of them loss=True; connect all but one of them, or mark each that holds a loss"
        )


def _check_gradients(graph: StageGraph) -> None:
    for edge in graph.edges:
        for name in (edge.source, edge.destination):
            if edge.backward and not graph.stage(name).backward:
                raise ScheduleError(
                    f"edge {edge.name!r} carries a gradient (backward=True), but stage {name!r} has no backward; "
                    "give the edge backward=False or the stage backward=True"
                )
    for stage in graph.stages:
        if stage.update and not stage.backward:
            raise ScheduleError(
                f"stage {stage.name!r} is updated (update=True) but has no backward to make its gradient; "
                "set update=False or backward=True"
            )
        outputs = graph.outputs(stage.name)
        if stage.backward and outputs and not stage.loss and not any(edge.backward for edge in outputs):
            raise ScheduleError(
                f"stage {stage.name!r} has a backward, but no gradient reaches it, as none of its outputs "
                f"({', '.join(edge.name for edge in outputs)}) has backward=True; set one, or set backward=False on it"
            )


def _check_windows(graph: StageGraph) -> None:
    of_module: dict[str, StageNode] = {}
    for stage in graph.stages:
        if stage.window < 1:
            raise ScheduleError(f"stage {stage.name!r}: window={stage.window}; give 1 microbatch or more")
        first = of_module.setdefault(stage.module, stage)
        if first.window != stage.window:
            raise ScheduleError(
                f"stages {first.name!r} and {stage.name!r} of module {stage.module!r} take {first.window} and "
                f"{stage.window} microbatches at once; give all stages of a module the same window"
            )
    for edge in graph.edges:
        source, destination = graph.stage(edge.source), graph.stage(edge.destination)
        if source.window % destination.window:
            raise ScheduleError(
                f"edge {edge.name!r}: {source.name!r} takes {source.window} microbatches at once and "
                f"{destination.name!r} {destination.window}; a stage takes a multiple of what its readers take"
            )
    for stage in graph.stages:
        if stage.window != 1 and not graph.outputs(stage.name):
            raise ScheduleError(
                f"stage {stage.name!r} holds the loss and has window={stage.window}; microbatches are those of "
                "the loss, so give it 1"
            )
