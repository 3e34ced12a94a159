"""A named way to schedule a graph, as every file of a schedule declares it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Schedule
from hetjax.schedule.graph import StageGraph
from hetjax.schedule.simulate import Costs


@dataclass(frozen=True, kw_only=True)
class ScheduleBuilder:
    """Build the schedule `name` of a graph; call it with the graph and a number of microbatches.

    Attributes:
        name: what settings call the schedule.
        summary: one line for lists of schedules.
        needs_costs: whether its order depends on what actions cost.
        order: the actions of a graph and a number of microbatches (and of costs, with `needs_costs`).
    """

    name: str
    summary: str
    needs_costs: bool
    order: Callable[..., tuple[Action, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.order.__doc__)  # which describes this schedule, not all of them

    def __call__(self, stages: StageGraph | Sequence[str], microbatches: int, costs: Costs | None = None) -> Schedule:
        """Build the schedule of a graph, or of a chain of stages given by their names.

        `costs` are what actions cost, for a schedule that needs them (all programs alike where None); another one
        ignores them.

        Raises:
            ScheduleError: fewer than one microbatch, a number of them that a stage's window does not divide, or a
                graph or costs that the schedule does not fit.
        """
        if microbatches < 1:
            raise ScheduleError(f"microbatches={microbatches}: a schedule needs at least 1 microbatch")
        graph = stages if isinstance(stages, StageGraph) else StageGraph.chain(stages)
        for stage in graph.stages:
            if microbatches % stage.window:
                raise ScheduleError(
                    f"microbatches={microbatches}: stage {stage.name!r} takes {stage.window} of them at once, which "
                    "does not divide; change one of the two"
                )
        actions = (
            self.order(graph, microbatches, costs or Costs()) if self.needs_costs else self.order(graph, microbatches)
        )
        return Schedule(name=self.name, graph=graph, microbatches=microbatches, actions=actions)


def schedule_builder(
    name: str, *, summary: str, needs_costs: bool = False
) -> Callable[[Callable[..., tuple[Action, ...]]], ScheduleBuilder]:
    """Declare the decorated function, which orders the actions of a step, as the schedule `name`."""
    return lambda order: ScheduleBuilder(name=name, summary=summary, needs_costs=needs_costs, order=order)
