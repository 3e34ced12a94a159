"""Hold a share of a source's samples out of training."""

from __future__ import annotations

import grain
import numpy as np
from jaxtyping import Int64

from hetjax.data.reading import Line, Source

_SEED = 20250101  # of no run: the samples held out are the same whatever `data.seed` is


def held_out(samples: int, share: float) -> Int64[np.ndarray, " _"]:
    """Return which of a source's samples are held out, ascending: a random `share` of them, at least one of them."""
    count = min(samples, max(1, round(share * samples)))
    order = grain.MapDataset.range(samples).shuffle(seed=_SEED)
    return np.sort(np.asarray([order[i] for i in range(count)], np.int64))


class HeldOut:
    """The samples of a source that are held out, in the order of the source."""

    def __init__(self, source: Source, held: Int64[np.ndarray, " _"]):
        self.path, self.folder = source.path, source.folder
        self._source, self._held = source, held
        self.blocks = _held_blocks(getattr(source, "blocks", None), held)

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: int) -> Line:
        return self._source[int(self._held[index])]


class Remaining:
    """The samples of a source that are not held out, in the order of the source."""

    def __init__(self, source: Source, held: Int64[np.ndarray, " _"]):
        self.path, self.folder = source.path, source.folder
        self._source = source
        # How many samples remain before each that is held out.
        self._before = held - np.arange(len(held))
        self.blocks = _remaining_blocks(getattr(source, "blocks", None), held)

    def __len__(self) -> int:
        return len(self._source) - len(self._before)

    def __getitem__(self, index: int) -> Line:
        return self._source[index + int(np.searchsorted(self._before, index, side="right"))]


def _remaining_blocks(
    blocks: Int64[np.ndarray, " _"] | None, held: Int64[np.ndarray, " _"]
) -> Int64[np.ndarray, " _"] | None:
    return None if blocks is None else blocks - _held_blocks(blocks, held)


def _held_blocks(
    blocks: Int64[np.ndarray, " _"] | None, held: Int64[np.ndarray, " _"]
) -> Int64[np.ndarray, " _"] | None:
    """Return how many of the samples held out stand in each block."""
    if blocks is None:
        return None
    return np.bincount(np.searchsorted(np.cumsum(blocks), held, side="right"), minlength=len(blocks))
