"""Times every action of a step by waiting for each: an observer for `Trainer.step`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from statistics import median

import jax

from hetjax.execution.executor import Dispatched
from hetjax.schedule import Costs, StageGraph
from hetjax.schedule.actions import HOST_COPIES, Action, Kind, Part
from hetjax.state.train_state import TrainState


class ActionTimer:
    """Measures the seconds of every action. A timed step gives the same numbers as any other, but nothing overlaps.

    Attributes:
        seconds: one measurement a microbatch and step, by (stage, or link of a transfer; kind of action); of host
            copies with the part that they move.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, Kind] | tuple[str, Kind, Part], list[float]] = defaultdict(list)
        self._last = 0.0

    def start(self, state: TrainState) -> ActionTimer:
        """Wait for all that is under way; to be called right before the step."""
        jax.block_until_ready(state)
        self._last = time.perf_counter()
        return self

    def __call__(self, action: Action, dispatched: Dispatched) -> None:
        """Wait for an action and record its seconds, as `Trainer.step(observe=...)` asks."""
        jax.block_until_ready(dispatched)
        now = time.perf_counter()
        what = (action.edge or action.stage, action.kind)
        self.seconds[what if action.part is None else (*what, action.part)].append(now - self._last)
        self._last = now

    def by_module(self, graph: StageGraph) -> dict[str, float]:
        """Return the seconds of a step that each module's programs took, "boundaries" for transfers, "host_copies"."""
        modules = {stage.name: stage.module for stage in graph.stages}
        totals: dict[str, float] = defaultdict(float)
        for (name, kind, *_), seconds in self.seconds.items():
            totals["host_copies" if kind in HOST_COPIES else modules.get(name, "boundaries")] += sum(seconds)
        return dict(totals)

    def costs(self) -> Costs:
        """Return the median seconds of each action, for `hetjax.schedule.simulate`."""
        return Costs(of={key: median(seconds) for key, seconds in self.seconds.items()})


def rounded(times: Mapping[str, float]) -> dict[str, float]:
    """Return times as metrics: {"seconds/vision": ...}."""
    return {f"seconds/{name}": round(seconds, 6) for name, seconds in times.items()}
