"""The times of a schedule in which nothing uses a part of a stage, and where the copies out and back go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hetjax.schedule.actions import ENDS_MICROBATCH, GIVES_GRADIENT, PROGRAMS, Kind, Part, Schedule

LEAST_PROGRAMS = 2
"""Programs that are dispatched between a copy out and the copy back, at least: beside the first the copy runs, and for
the rest the memory is free."""


class IdleTime(NamedTuple):
    """A time in which no action uses a part of a stage, by places in the schedule.

    Attributes:
        stage, part, microbatch: what is not used.
        after: the action that uses it last; -1 for none.
        before: the action that uses it next, or the first update where that is in the next step.
    """

    stage: str
    part: Part
    microbatch: int | None
    after: int
    before: int


def idle_times(schedule: Schedule, module: str) -> Iterator[IdleTime]:
    """Yield the times in which parts of a module's stages are idle, however short."""
    actions = schedule.actions
    updates = next((place for place, action in enumerate(actions) if action.kind is Kind.UPDATE), len(actions))
    for stage in (stage for stage in schedule.graph.stages if stage.module == module):
        own = [(place, action) for place, action in enumerate(actions) if action.stage == stage.name]
        forwards = {action.microbatch: place for place, action in own if action.kind is Kind.FORWARD}
        backwards = {action.microbatch: place for place, action in own if action.kind in GIVES_GRADIENT}
        if stage.update:
            yield IdleTime(stage.name, Part.OPTIMIZER, None, -1, updates)
        last, first = max(forwards.values()), min(backwards.values(), default=updates)
        if last < first:
            yield IdleTime(stage.name, Part.WEIGHTS, None, last, first)
        for index, place in backwards.items():
            yield IdleTime(stage.name, Part.RESIDUALS, index, forwards[index], place)


def place_of_reload(schedule: Schedule, idle: IdleTime) -> int | None:
    """Return the place of the action before which a copy back is dispatched; None for a time that is too short."""
    actions = schedule.actions
    programs = [place for place in range(idle.after + 1, idle.before) if actions[place].kind in PROGRAMS]
    for place in (_one_program_ahead(schedule, idle, programs), idle.before):
        if sum(each < place for each in programs) >= LEAST_PROGRAMS:
            return place
    return None


def _one_program_ahead(schedule: Schedule, idle: IdleTime, programs: Sequence[int]) -> int:
    """Return the place of the last program before the need: on its devices, or anywhere where these only wait."""
    graph, actions = schedule.graph, schedule.actions
    devices = set(graph.occupies(idle.stage))
    beside = [place for place in programs if not devices.isdisjoint(graph.occupies(actions[place].stage))]
    place = max(beside or programs, default=idle.before)
    return idle.before if place in _fullest(schedule) else place


def _fullest(schedule: Schedule) -> set[int]:
    """Return the places of programs of the loss's module while its stage keeps the most microbatches alive."""
    graph = schedule.graph
    alive: Counter[str] = Counter()
    counts: dict[int, tuple[str, int]] = {}
    for place, action in enumerate(schedule.actions):
        if action.kind in PROGRAMS and graph.stage(action.stage).module == graph.sink.module:
            alive[action.stage] += action.kind is Kind.FORWARD
            counts[place] = action.stage, alive[action.stage]
            alive[action.stage] -= action.kind in ENDS_MICROBATCH
    most: Counter[str] = Counter()
    for stage, count in counts.values():
        most[stage] = max(most[stage], count)
    return {place for place, (stage, count) in counts.items() if count == most[stage]}
