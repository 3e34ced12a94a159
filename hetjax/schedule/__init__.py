"""Schedules: which stage runs which microbatch when, as plain data that is checked before it runs.

`graph` says what is scheduled, `actions` what a schedule is, `order` turns the orders on the meshes into
one. Each schedule has a file that declares it (`builder`), and `registry` lists them all by name;
`bubble_fill` searches, with `filling` and `greedy`. `check` verifies that a schedule is legal, walking an
`execution`; `simulate` computes how long it takes, `draw` and `trace` show that in `lanes`. Nothing here
imports JAX.
"""

from __future__ import annotations

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Kind, Schedule
from hetjax.schedule.bubble_fill import bubble_fill
from hetjax.schedule.check import Report, check
from hetjax.schedule.colocated import colocated
from hetjax.schedule.gpipe import gpipe
from hetjax.schedule.graph import StageEdge, StageGraph, StageNode
from hetjax.schedule.interleaved import interleaved_1f1b
from hetjax.schedule.one_f_one_b import one_f_one_b
from hetjax.schedule.registry import DEFAULT_SCHEDULE, SCHEDULES, ScheduleName, build_schedule, needs_costs
from hetjax.schedule.simulate import Costs, Span, Timeline, simulate
from hetjax.schedule.zero_bubble import zero_bubble

__all__ = [
    "DEFAULT_SCHEDULE",
    "SCHEDULES",
    "Action",
    "Costs",
    "Kind",
    "Report",
    "Schedule",
    "ScheduleError",
    "ScheduleName",
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
