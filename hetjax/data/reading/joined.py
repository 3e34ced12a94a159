"""Several sources as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from hetjax.data.reading.source import Line, Source


class JoinedSource:
    """The samples of several sources, one source behind the other.

    `blocks` has how many samples on end are best read together, where all the sources say that.
    """

    def __init__(self, sources: Sequence[Source], path: Path):
        self.path, self.folder = path, path.parent
        self._sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        self.blocks = joined_blocks(sources)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Line:
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[number]
        return source[index - int(self._ends[number]) + len(source)]


def joined_blocks(sources: Sequence[Source]) -> Int64[np.ndarray, " _"] | None:
    """Return the blocks of sources one behind the other; None where one of them has none."""
    blocks = [getattr(source, "blocks", None) for source in sources]
    return None if any(each is None for each in blocks) else np.concatenate(blocks)
