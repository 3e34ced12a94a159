"""The settings of profiling some steps."""

from __future__ import annotations

import dataclasses
import re

from hetjax.errors import ConfigError

_STEPS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """The settings of profiling some steps.

    Args:
        steps: The first and the last step that JAX's profiler traces into the folder profile of the run, as 10-12, or
            one alone; null for none.
    """

    steps: str | int | None = None

    def __post_init__(self):
        if self.steps is None:
            return
        found = _STEPS.fullmatch(str(self.steps))
        if not found or not self.range or self.range.start < 1:
            raise ConfigError(f"profile.steps is {self.steps!r}; give the first and the last step, as 10-12, or one")

    @property
    def range(self) -> range:
        """Return the numbers of the steps; none for null."""
        if self.steps is None:
            return range(0)
        first, last = _STEPS.fullmatch(str(self.steps)).groups()
        return range(int(first), int(last or first) + 1)
