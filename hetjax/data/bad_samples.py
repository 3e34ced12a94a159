"""Replace bad samples by good ones, count them, and stop where they are too many."""

from __future__ import annotations

import bisect
import dataclasses
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from hetjax.data.media import printable
from hetjax.data.reading import Source
from hetjax.errors import DataError

S = TypeVar("S")
"""A sample as its loader makes it."""


_MOST_LETTERS = 1000
_INLINE = re.compile(r"(data:[\w/+.;=-]{0,80},)([A-Za-z0-9+/=_%-]{32,})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sample that cannot be used; `reason` opens with "file:line: "."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledRow(Generic[S]):
    """The sample of a row, or None where no stand-in was found.

    `skipped` is the reason ("file:line: ...") why the sample whose turn it was is not in it, or None.
    """

    sample: S | None
    skipped: str | None


def reason_of(error: Exception, source: Source, index: int) -> str:
    """Return why a sample cannot be used, as one line that opens with where the sample stands.

    Any exception of a sample is that sample's: a library that decodes damaged files may raise every type of it.
    """
    if isinstance(error, DataError):
        return readable(str(error))
    try:
        where = source[index].where
    except Exception:  # the line itself may be what cannot be read
        where = f"{source.path}: sample {index}"
    code = traceback.extract_tb(error.__traceback__)[-1:]
    at = f" ({Path(code[0].filename).name}, line {code[0].lineno})" if code else ""
    return readable(f"{where}: the sample cannot be used: {type(error).__name__}: {error or 'no message'}{at}")


def readable(text: str) -> str:
    """Return a message that any log takes: no lone surrogate, no content of a data URI, at most 1,000 letters."""
    text = _INLINE.sub(lambda found: f"{found[1]}(... {len(found[2])} characters)", printable(text))
    return (
        text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]} (and {len(text) - _MOST_LETTERS} more letters)"
    )


def tried(load: Callable[[], S], source: Source, index: int) -> S | BadSample:
    """Return what `load` loads of a sample; any exception comes back as a value, since it would end the pipeline."""
    try:
        return load()
    except Exception as error:
        return BadSample(reason=reason_of(error, source, index))


class StandIns(Generic[S]):
    """Loads the sample of a turn, or in its place the next good one behind it.

    Which one that is depends on the sample alone, not on other rows, so that every process that needs
    the row finds the same by itself. The search goes on from the last sample of a source to its first, and ends after
    `most` bad samples, the first among them. `ends` says where each of several sources ends that are one as `source`.
    `load` takes the index of a sample and the turn, which fixes how its media are moved.
    """

    def __init__(self, load: Callable[[int, int], S], source: Source, *, most: int, ends: Sequence[int] = ()):
        self._load, self._source, self._most = load, source, most
        self._ends = list(ends) or [len(source)]
        # Many bad samples on end would otherwise be tried again for each of them.
        self._known_bad: set[int] = set()

    def fill(self, index: int, *, turn: int) -> FilledRow[S]:
        """Return the row whose turn it is for sample `index`."""
        sample = self._try(index, turn)
        if not isinstance(sample, BadSample):
            return FilledRow(sample=sample, skipped=None)
        number = bisect.bisect_right(self._ends, index)
        first, end = self._ends[number - 1] if number else 0, self._ends[number]
        for distance in range(1, min(self._most, end - first)):
            behind = first + (index - first + distance) % (end - first)
            if behind in self._known_bad:
                continue
            found = self._try(behind, turn)
            if not isinstance(found, BadSample):
                return FilledRow(sample=found, skipped=sample.reason)
        return FilledRow(sample=None, skipped=sample.reason)

    def _try(self, index: int, turn: int) -> S | BadSample:
        sample = tried(lambda: self._load(index, turn), self._source, index)
        if isinstance(sample, BadSample):
            self._known_bad.add(index)
        return sample


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
        """Return how many bad samples in a row of the file are too many: one more than a pass may have, or all."""
        return min(self._limit(self.samples)[1] + 1, self.samples)

    def no_stand_in(self, reason: str) -> DataError:
        """Return the error for so many bad samples on end that one of them has no stand-in."""
        most, (judged, allowed) = self.most_on_end, self._limit(self.samples)
        why = f"more than max_bad_share {self.max_share:g} allows ({allowed} of {judged})"
        return DataError(
            f"dataset '{self.path}': {most} samples one behind the other are bad, "
            f"{'all that it has' if most == self.samples else why}; repair or remove these lines. "
            f"The first one: {reason}"
        )

    def _limit(self, seen: int) -> tuple[int, int]:
        """Return `seen` rounded up to whole blocks, and how many bad samples that many may have."""
        block = min(BLOCK, self.samples)
        judged = -(-seen // block) * block
        return judged, int(self.max_share * judged)
