"""Call a program's own functions at the events of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hetjax.errors import CallbackError, ConfigError
from hetjax.evaluation.results import SetResult
from hetjax.state.train_state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEvent:
    """A step whose metrics have arrived, one step late.

    Attributes:
        step: its number, from 1.
        metrics: what is logged of it, by name.
        is_main: whether this is the process that logs; events come in every process.
    """

    step: int
    metrics: Mapping[str, float]
    is_main: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateEvent:
    """An evaluation.

    Attributes:
        step: the step after which it was.
        numbers: what is logged of it, by name.
        results: the same by held-out set, with every answer.
        state: the state that was evaluated; a step consumes it once the callback has returned.
        is_main: as of `StepEvent`.
    """

    step: int
    numbers: Mapping[str, float]
    results: tuple[SetResult, ...]
    state: TrainState
    is_main: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveEvent:
    """A checkpoint that is complete: it was written in the background while steps went on.

    Attributes:
        step: the step that it is of.
        path: its folder.
        is_main: as of `StepEvent`.
    """

    step: int
    path: Path
    is_main: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions to call at the events of a run. A class of your own with methods of these names does as well.

    Attributes:
        on_step: called with a `StepEvent` for every step.
        on_evaluate: called with an `EvaluateEvent` after every evaluation.
        on_save: called with a `SaveEvent` once a checkpoint is complete.
    """

    on_step: Callable[[StepEvent], object] | None = None
    on_evaluate: Callable[[EvaluateEvent], object] | None = None
    on_save: Callable[[SaveEvent], object] | None = None


EVENTS = tuple(field.name for field in dataclasses.fields(Callbacks))


class Events:
    """Calls all callbacks of a run, in their order.

    Args:
        callbacks: objects with some of the methods of `Callbacks`.

    Raises ConfigError for one without any of them, or with a method "on_..." that is no event.
    """

    def __init__(self, callbacks: Sequence[object]):
        for each in callbacks:
            named = [name for name in dir(each) if name.startswith("on_")]
            unknown = [name for name in named if name not in EVENTS]
            if unknown or not named:
                what = f"has the method {unknown[0]}" if unknown else "has none of the methods"
                raise ConfigError(f"the callback {_name(each)} {what}; the events of a run are {', '.join(EVENTS)}")
        self._callbacks = tuple(callbacks)

    def on_step(self, event: StepEvent) -> None:
        """Call `on_step` of all. Raises CallbackError for an exception in one, as the other events do."""
        self._call("on_step", event)

    def on_evaluate(self, event: EvaluateEvent) -> None:
        """Call `on_evaluate` of all."""
        self._call("on_evaluate", event)

    def on_save(self, event: SaveEvent) -> None:
        """Call `on_save` of all."""
        self._call("on_save", event)

    def _call(self, name: str, event: StepEvent | EvaluateEvent | SaveEvent) -> None:
        for each, function in self._having(name):
            try:
                function(event)
            except Exception as error:
                raise CallbackError(
                    f"the callback {_name(each)}.{name} failed at step {event.step}: {type(error).__name__}: {error}"
                ) from error

    def _having(self, name: str) -> Iterator[tuple[object, Callable]]:
        for each in self._callbacks:
            function = getattr(each, name, None)
            if function is not None:
                yield each, function


def _name(callback: object) -> str:
    return callback.__name__ if isinstance(callback, type) else type(callback).__name__
