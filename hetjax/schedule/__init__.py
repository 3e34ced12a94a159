"""Schedules: which stage runs which microbatch when, as plain data that is checked before it runs.

`graph` says what is scheduled, `actions` what a schedule is, `order` turns the orders on the meshes into
one; each schedule has its file (`bubble_fill` searches, with `filling` and `greedy`). `check` tells whether
a schedule is legal, walking an `execution`; `simulate` tells how long it takes, `draw` and `trace` show it
in `lanes`. Nothing here imports JAX.
"""

from __future__ import annotations

from collections.abc import Callable

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Kind, Schedule
from hetjax.schedule.bubble_fill import bubble_fill
from hetjax.schedule.check import Report, check
from hetjax.schedule.colocated import colocated
from hetjax.schedule.gpipe import gpipe
from hetjax.schedule.graph import StageEdge, StageGraph, StageNode
from hetjax.schedule.interleaved import interleaved_1f1b
from hetjax.schedule.one_f_one_b import one_f_one_b
from hetjax.schedule.simulate import Costs, Span, Timeline, simulate
from hetjax.schedule.zero_bubble import zero_bubble

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved_1f1b": interleaved_1f1b,
    "zero_bubble": zero_bubble,
    "colocated": colocated,
    "bubble_fill": bubble_fill,
}


def build_schedule(name: str, graph: StageGraph, microbatches: int, costs: Costs | None = None) -> Schedule:
    """The schedule of that name for a graph.

    `costs` are what "bubble_fill" chooses its order by; the other schedules do without.

    Raises:
        ScheduleError: an unknown name (lists the known ones), fewer than one microbatch, or a graph that
            the schedule or the costs do not fit.
    """
    if name not in SCHEDULES:
        raise ScheduleError(f"unknown schedule {name!r}; the known ones are {', '.join(SCHEDULES)}")
    if needs_costs(name):
        return bubble_fill(graph, microbatches, costs)
    return SCHEDULES[name](graph, microbatches)


def needs_costs(name: str) -> bool:
    """Whether the schedule of that name chooses its order by what actions cost."""
    return name == "bubble_fill"


__all__ = [
    "SCHEDULES",
    "Action",
    "Costs",
    "Kind",
    "Report",
    "Schedule",
    "ScheduleError",
    "Span",
    "StageEdge",
    "StageGraph",
    "StageNode",
    "Timeline",
    "bubble_fill",
    "build_schedule",
    "check",
    "colocated",
    "gpipe",
    "interleaved_1f1b",
    "needs_costs",
    "one_f_one_b",
    "simulate",
    "zero_bubble",
]
