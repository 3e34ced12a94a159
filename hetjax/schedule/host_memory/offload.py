"""Offload: what a module does not need for a while waits in the memory of the host, in any finished schedule."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Kind, Part, Schedule, offload, reload
from hetjax.schedule.graph import StageNode
from hetjax.schedule.host_memory.idle_times import LEAST_PROGRAMS, idle_times, place_of_reload


def offload_modules(schedule: Schedule, modules: Collection[str]) -> Schedule:
    """Return a schedule with the copies that keep what these modules do not need in the memory of the host.

    Of each stage of a module, the optimizer's state and the master weights leave at the start of the step and are back
    for the update; weights leave after the last forward and are back for the first backward, or without a backward at
    the end of the step; residuals of a microbatch leave after its forward and are back for its backward. A copy back is
    dispatched one program ahead of the need, to run beside that program; but not beside a program of the module of the
    loss while that keeps the most microbatches alive, when memory is needed most: then right behind it. What would be
    away for fewer than `LEAST_PROGRAMS` programs stays. Between steps everything is on the devices.

    Raises:
        ScheduleError: the module that holds the loss, one that the graph lacks, or one of which nothing can leave.
    """
    actions = schedule.actions
    before: dict[int, list[Action]] = {}
    for module in dict.fromkeys(modules):
        _check_module(schedule, module)
        count = max(schedule.count(stage.name) for stage in schedule.graph.stages if stage.module == module)
        places = [(idle, place_of_reload(schedule, idle)) for idle in idle_times(schedule, module)]
        if all(place is None for _, place in places):
            raise ScheduleError(
                f"offload names module '{module}', of which nothing can leave the devices: by schedule "
                f"'{schedule.name}' with {count} microbatches no part of it is idle for "
                f"{LEAST_PROGRAMS} programs; leave it out, or use 'colocated' or 'gpipe' with more microbatches"
            )
        # What is needed first comes back first.
        for idle, place in sorted(places, key=lambda each: each[0].before):
            if place is not None:
                key = idle.stage, idle.part, idle.microbatch
                before.setdefault(idle.after + 1, []).append(offload(*key))
                before.setdefault(place, []).append(reload(*key))
    ordered: list[Action] = []
    for place in range(len(actions) + 1):
        ordered += before.get(place, ())
        ordered += actions[place : place + 1]
    return dataclasses.replace(schedule, actions=tuple(ordered))


def _check_module(schedule: Schedule, module: str) -> None:
    """Raise ScheduleError unless it is a module of the graph, and not that of the loss."""
    known = list(dict.fromkeys(stage.module for stage in schedule.graph.stages))
    sink = schedule.graph.sink.module
    if module not in known:
        raise ScheduleError(
            f"offload names module '{module}', which the graph lacks; its modules are {', '.join(known)}"
        )
    if module == sink:
        others = ", ".join(name for name in known if name != sink)
        raise ScheduleError(
            f"offload names module '{module}', which holds the loss: its backwards follow its forwards at once, so it "
            f"has no idle time; {f'name encoders ({others})' if others else 'leave offload out'}"
        )


def offload_lines(schedule: Schedule, modules: Collection[str]) -> Iterator[str]:
    """Yield for each stage of these modules what leaves the devices in a schedule of `offload_modules`."""
    for stage in schedule.graph.stages:
        if stage.module in modules:
            yield _line(schedule, stage)


def _line(schedule: Schedule, stage: StageNode) -> str:
    own = [action for action in schedule.actions if action.stage == stage.name]
    away = Counter(action.part for action in own if action.kind is Kind.OFFLOAD)
    microbatches = sum(action.kind is Kind.FORWARD for action in own)
    moved = {
        "optimizer state until the update": away[Part.OPTIMIZER],
        f"weights {'between' if stage.backward else 'after'} the forwards{' and the backwards' * stage.backward}": (
            away[Part.WEIGHTS]
        ),
        f"residuals of {away[Part.RESIDUALS]} of {microbatches} microbatches": away[Part.RESIDUALS],
    }
    stays = {
        "optimizer state": stage.update and not away[Part.OPTIMIZER],
        "weights": not away[Part.WEIGHTS],
        "other residuals" if away[Part.RESIDUALS] else "residuals": (
            stage.backward and away[Part.RESIDUALS] < microbatches
        ),
    }
    line = f"offload: {stage.name}: {', '.join(part for part, times in moved.items() if times) or 'nothing'}"
    staying = [part for part, applies in stays.items() if applies]
    if staying:
        line += (
            f"; {' and '.join(staying)} stay, idle for fewer than {LEAST_PROGRAMS} programs by schedule "
            f"'{schedule.name}'"
        )
    return line
