"""What a row holds when the sample whose turn it is turns out bad."""

from __future__ import annotations

import dataclasses
from typing import Any

from hetjax.data.loading import BadSample


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledRow:
    """The sample of a row, as its loader makes it, or None where no stand-in was found.

    `skipped` is the reason ("file:line: ...") why the sample whose turn it was is not in it, or None.
    """

    sample: Any
    skipped: str | None


class StandIns:
    """Loads the sample of a turn, by a `Loader` or `OmniLoader`, or in its place the next good one behind it.

    Which one that is depends on the sample alone, not on other rows, so that every process that needs
    the row finds the same by itself. The search goes on from the last line to the first, and ends after
    `most` bad samples, the first among them.
    """

    def __init__(self, loader: Any, *, most: int):
        self._loader, self._most = loader, most
        # Many bad samples on end would otherwise be tried again for each of them.
        self._known_bad: set[int] = set()

    def fill(self, index: int, *, turn: int) -> FilledRow:
        """The row whose turn it is for sample `index`; `turn` fixes how its images are moved."""
        sample = self._try(index, turn)
        if not isinstance(sample, BadSample):
            return FilledRow(sample=sample, skipped=None)
        for step in range(1, self._most):
            behind = (index + step) % len(self._loader.source)
            if behind in self._known_bad:
                continue
            found = self._try(behind, turn)
            if not isinstance(found, BadSample):
                return FilledRow(sample=found, skipped=sample.reason)
        return FilledRow(sample=None, skipped=sample.reason)

    def _try(self, index: int, turn: int) -> Any:
        sample = self._loader.shifted(index, turn=turn)
        if isinstance(sample, BadSample):
            self._known_bad.add(index)
        return sample
