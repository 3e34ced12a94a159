"""Profile some steps of a run by JAX's profiler, with the names of modules, stages and microbatches on its rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from hetjax.config.profile_config import ProfileConfig
from hetjax.execution.executor import Announcer, Dispatched, Observer
from hetjax.schedule.actions import Action, Kind

FOLDER = "profile"
"""In the run's folder; TensorBoard's profile plugin, XProf and Perfetto open what is in it."""


class Hooks(NamedTuple):
    """What `Trainer.step` calls around each action."""

    announce: Announcer | None
    observe: Observer | None


class StepProfile:
    """Profiles the steps that are asked for, in one trace.

    On the row of the host each step is "train" with its number (`StepTraceAnnotation`), and inside of it each dispatch
    is named by its stage or link, what it does and its microbatch (`TraceAnnotation`), such as "llm.0 backward
    microbatch 3". On the rows of devices a program is named by its module, "jit_llm_backward", and its operations by
    the parts of the model (`hetjax.models.scopes`).

    Args:
        settings: which steps.
        folder: the run's folder.
        message: prints where the profile is, once it is written.
    """

    def __init__(self, settings: ProfileConfig, folder: Path, message: Callable[[str], None]):
        self._range, self._folder, self._message = settings.range, folder / FOLDER, message
        self._traces = False

    def takes(self, step: int) -> bool:
        """Return whether a step is profiled."""
        return step in self._range

    @contextlib.contextmanager
    def step(self, step: int, before: object, announce: Announcer | None) -> Iterator[Hooks]:
        """Run a step inside of the profile, where it is one that is asked for.

        Args:
            step: its number.
            before: arrays that steps before it make, which the profile waits for ahead of its first step.
            announce: what else is called before each action.
        """
        if not self.takes(step):
            yield Hooks(announce, None)
            return
        if not self._traces:
            jax.block_until_ready(before)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # a row for every call of Python would drown the others
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._traces = True
        rows = _ActionRows(announce)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            try:
                yield Hooks(rows.begin, rows.end)
            finally:
                rows.close()

    def after(self, step: int, made: object) -> None:
        """Write the profile behind its last step, once the arrays that the step made are there."""
        if self._traces and not self.takes(step + 1):
            jax.block_until_ready(made)
            self.close()
            self._message(f"profile of steps {self._range.start}-{step} is in {self._folder}")

    def close(self) -> None:
        """Write what was traced of a run that ends inside of its profile."""
        if self._traces:
            self._traces = False
            jax.profiler.stop_trace()


class _ActionRows:
    """Names the dispatch of each action on the row of the host."""

    def __init__(self, announce: Announcer | None):
        self._announce = announce
        self._open: jax.profiler.TraceAnnotation | None = None

    def begin(self, place: int, action: Action) -> None:
        self.close()  # an update that this process has no part in is not observed
        if self._announce is not None:
            self._announce(place, action)
        self._open = jax.profiler.TraceAnnotation(row_name(action))
        self._open.__enter__()

    def end(self, action: Action, dispatched: Dispatched) -> None:
        self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


def row_name(action: Action) -> str:
    """Return the name of an action in a profile: "llm.0 backward microbatch 3", "vision->llm gradient microbatch 0"."""
    what = action.kind.value.replace("_", " of ")
    if action.kind is Kind.TRANSFER:
        what = "gradient" if action.backward else "activation"
    part = "" if action.part is None else f" {action.part.value}"
    microbatch = "" if action.microbatch is None else f" microbatch {action.microbatch}"
    return f"{action.edge or action.stage} {what}{part}{microbatch}"
