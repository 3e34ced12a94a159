"""What a row holds when the sample whose turn it is turns out bad."""

from __future__ import annotations

import dataclasses

from hetjax.data.loading import BadSample, LoadedSample, Loader


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledRow:
    """The sample of a row, or None where no stand-in was found.

    `skipped` is the reason ("file:line: ...") why the sample whose turn it was is not in it, or None.
    """

    sample: LoadedSample | None
    skipped: str | None


class StandIns:
    """Loads the sample of a turn, or in its place the next good one behind it in the file.

    Which one that is depends on the sample alone, not on other rows, so that every process that needs
    the row finds the same by itself. The search goes on from the last line to the first, and ends after
    `most` bad samples, the first among them.
    """

    def __init__(self, loader: Loader, *, most: int):
        self._loader, self._most = loader, most
        # Many bad samples on end would otherwise be tried again for each of them.
        self._known_bad: set[int] = set()

    def fill(self, index: int, *, turn: int) -> FilledRow:
        """The row whose turn it is for sample `index`; `turn` fixes how its images are moved."""
        sample = self._try(index, turn)
        if isinstance(sample, LoadedSample):
            return FilledRow(sample=sample, skipped=None)
        for step in range(1, self._most):
            behind = (index + step) % len(self._loader.source)
            if behind in self._known_bad:
                continue
            found = self._try(behind, turn)
            if isinstance(found, LoadedSample):
                return FilledRow(sample=found, skipped=sample.reason)
        return FilledRow(sample=None, skipped=sample.reason)

    def _try(self, index: int, turn: int) -> LoadedSample | BadSample:
        sample = self._loader.shifted(index, turn=turn)
        if isinstance(sample, BadSample):
            self._known_bad.add(index)
        return sample
