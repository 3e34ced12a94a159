"""How many samples turned out bad, and when that is too many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hetjax.errors import DataError

# A share means little over a few samples: it is taken of blocks of this many, or of the whole dataset if smaller.
BLOCK = 100


@dataclasses.dataclass(kw_only=True)
class BadTally:
    """Counts samples as their turn comes, and stops a run whose data is mostly broken.

    The run stops when more than `max_share` of the samples seen so far are bad, where their number is
    rounded up to a whole block of `min(100, samples)`: with a share of 0.01 the second bad one among the
    first 100 stops it, with a share of 0 the very first; and a small dataset that passes one epoch
    passes all. It also stops after as many bad samples in a row as the dataset has, since then there may
    be no good one.
    """

    path: Path
    samples: int
    max_share: float
    seen: int = 0
    bad: int = 0
    in_a_row: int = 0

    def good(self) -> None:
        """Count a usable sample."""
        self.seen += 1
        self.in_a_row = 0

    def skip(self, reason: str) -> None:
        """Count a bad sample.

        Raises:
            DataError: this one is too many.
        """
        self.seen += 1
        self.bad += 1
        self.in_a_row += 1
        judged, allowed = self._limit(self.seen)
        if self.bad > allowed:
            why = f"more than max_bad_share {self.max_share:g} allows ({allowed} of {judged})"
        elif self.in_a_row >= self.samples:
            why = "the last ones as many in a row as the dataset has samples"
        else:
            return
        raise DataError(
            f"dataset '{self.path}': {self.bad} of the {self.seen} samples read so far are bad, {why}; "
            f"repair or remove these lines, or raise max_bad_share. The last one: {reason}"
        )

    @property
    def most_on_end(self) -> int:
        """Bad lines one behind the other that are too many: one more than a pass may have, or the whole file."""
        return min(self._limit(self.samples)[1] + 1, self.samples)

    def no_stand_in(self, reason: str) -> DataError:
        """The error for so many bad samples on end that one of them has no stand-in."""
        most, (judged, allowed) = self.most_on_end, self._limit(self.samples)
        why = f"more than max_bad_share {self.max_share:g} allows ({allowed} of {judged})"
        return DataError(
            f"dataset '{self.path}': {most} samples one behind the other are bad, "
            f"{'all that it has' if most == self.samples else why}; repair or remove these lines. "
            f"The first one: {reason}"
        )

    def _limit(self, seen: int) -> tuple[int, int]:
        """`seen` rounded up to whole blocks, and how many bad samples that many may have."""
        block = min(BLOCK, self.samples)
        judged = -(-seen // block) * block
        return judged, int(self.max_share * judged)
