"""Schedules: which stage runs which microbatch when, as plain data that is checked before it runs.

`graph` says what is scheduled, `actions` what a schedule is, `order` turns the orders on the stages into
one; each schedule has its file. `check` tells whether a schedule is legal, `simulate` how long it
takes, `draw` and `trace` show it. Nothing here imports JAX.
"""

from __future__ import annotations

from collections.abc import Callable

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Kind, Schedule
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
}


def build_schedule(name: str, graph: StageGraph, microbatches: int, costs: Costs | None = None) -> Schedule:
    """The schedule of that name for a graph.

    `costs` are what "bubble_fill" chooses its order by; the other schedules do without.

    Raises:
        ScheduleError: an unknown name (lists the known ones), fewer than one microbatch, or a graph that
            the schedule does not fit.
    """
    if name not in SCHEDULES:
        raise ScheduleError(f"unknown schedule {name!r}; the known ones are {', '.join(SCHEDULES)}")
    return SCHEDULES[name](graph, microbatches)


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
    "build_schedule",
    "check",
    "colocated",
    "gpipe",
    "interleaved_1f1b",
    "one_f_one_b",
    "simulate",
    "zero_bubble",
]
