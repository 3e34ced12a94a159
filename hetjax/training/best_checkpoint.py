"""Find the best step of a run by a number of its evaluations."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from hetjax.config.eval_config import BestCheckpoint
from hetjax.errors import ConfigError
from hetjax.evaluation.evaluator import Asked, headline_names
from hetjax.models.json_values import Json

BEST_FILE = "best.json"
"""In the run's folder: the step of its best checkpoint, and the number that it is the best by."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The best step so far: its number, the name of what it is best by, and the value of that."""

    step: int
    metric: str
    value: float

    def __str__(self) -> str:
        """Name the step and its number."""
        return f"step {self.step}, {self.metric} {self.value:.4f}"


class BestStep:
    """Follows the best step of a run.

    Args:
        settings: By which number; None follows nothing.
        sets: What is asked of each held-out set.

    Attributes:
        best: The best step so far; None before the first evaluation, and where nothing is followed.

    Raises ConfigError for a number that no evaluation of the run gives.
    """

    def __init__(self, settings: BestCheckpoint | None, sets: tuple[Asked, ...]):
        self.best: Best | None = None
        self._metric = None if settings is None else settings.metric
        if settings is None:
            return
        names = headline_names(sets)
        if settings.metric not in names:
            have = f"gives {', '.join(names)}" if names else "gives none, as data.eval is null"
            raise ConfigError(f"best_checkpoint.metric is {settings.metric!r}, but an evaluation of this run {have}")
        self._takes_largest = names[settings.metric] if settings.mode is None else settings.mode == "max"

    def is_best(self, step: int, numbers: Mapping[str, float]) -> bool:
        """Return whether what an evaluation found is better than all before; then it is the best from here on."""
        if self._metric is None:
            return False
        value = numbers[self._metric]
        if not math.isfinite(value):
            return False
        if self.best is not None and (value <= self.best.value if self._takes_largest else value >= self.best.value):
            return False
        self.best = Best(step, self._metric, value)
        return True

    def to_json(self) -> Json:
        """Return what a checkpoint keeps of it."""
        return None if self.best is None else dataclasses.asdict(self.best)

    def resume(self, saved: Json) -> None:
        """Go on from what `to_json` gave, where it is of the same number."""
        if isinstance(saved, Mapping) and saved["metric"] == self._metric:
            self.best = Best(**saved)

    def write(self, folder: Path) -> None:
        """Write `BEST_FILE` into the folder of a run, or remove it where there is no best step."""
        path = folder / BEST_FILE
        if self.best is None:
            path.unlink(missing_ok=True)
            return
        about = {**dataclasses.asdict(self.best), "checkpoint": f"checkpoints/{self.best.step}"}
        path.write_text(json.dumps(about) + "\n")
