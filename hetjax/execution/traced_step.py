"""A training step that is traced, but not compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hetjax.execution.made_programs import MadePrograms
from hetjax.execution.step_programs import Step
from hetjax.schedule import Report, Schedule


class TracedStep(NamedTuple):
    """A step for batches of some shapes, traced but not compiled.

    Attributes:
        step: all its programs, and the schedule that they run by.
        report: what the check of this schedule found.
        tasks: what remains to compile, by name.
        made: its programs, for steps that share some of them.
    """

    step: Step
    report: Report
    tasks: dict[str, Callable[[], object]]
    made: MadePrograms

    @property
    def schedule(self) -> Schedule:
        """The schedule that the step runs by."""
        return self.step.schedule
