"""List all schedules by name. A new one is a file like those of the others, its import and its line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Schedule
from hetjax.schedule.bubble_fill import bubble_fill
from hetjax.schedule.builder import ScheduleBuilder
from hetjax.schedule.colocated import colocated
from hetjax.schedule.gpipe import gpipe
from hetjax.schedule.graph import StageGraph
from hetjax.schedule.interleaved import interleaved_1f1b
from hetjax.schedule.one_f_one_b import one_f_one_b
from hetjax.schedule.simulate import Costs
from hetjax.schedule.zero_bubble import zero_bubble

_BUILDERS = (
    gpipe,
    one_f_one_b,
    interleaved_1f1b,
    zero_bubble,
    colocated,
    bubble_fill,
)

SCHEDULES: Mapping[str, ScheduleBuilder] = MappingProxyType({builder.name: builder for builder in _BUILDERS})
"""Every schedule by its name, in the order in which lists show them."""

ScheduleName = Literal[tuple(SCHEDULES)]
"""The type of a setting that names a schedule."""

DEFAULT_SCHEDULE = one_f_one_b.name
"""The schedule of a run that names none: it fits any graph and keeps the fewest microbatches alive."""


def build_schedule(name: str, graph: StageGraph, microbatches: int, costs: Costs | None = None) -> Schedule:
    """Build the schedule of that name for a graph.

    `costs` are what actions cost, for the schedules that choose their order by them (`needs_costs`).

    Raises:
        ScheduleError: an unknown name (lists the known ones), fewer than one microbatch, or a graph that
            the schedule or the costs do not fit.
    """
    return _find(name)(graph, microbatches, costs)


def needs_costs(name: str) -> bool:
    """Return whether the schedule of that name chooses its order by what actions cost.

    Raises:
        ScheduleError: an unknown name (lists the known ones).
    """
    return _find(name).needs_costs


def _find(name: str) -> ScheduleBuilder:
    if name not in SCHEDULES:
        raise ScheduleError(f"unknown schedule {name!r}; the known ones are {', '.join(SCHEDULES)}")
    return SCHEDULES[name]
