"""Shuffle the samples of a source whose samples are read in blocks."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int64

_BLOCKS = 8  # in a window, whose samples are shuffled together


class BlockShuffle:
    """Which sample of a source stands at each position of endless passes over it.

    In each pass the blocks come in a random order, and the samples of some blocks on end are shuffled together: so a
    reader that keeps the latest blocks in memory reads each about once a pass, where a shuffle of all samples would
    read a block for every one of them.

    Args:
        blocks: samples of each block.
        seed: of all passes.
    """

    def __init__(self, blocks: Int64[np.ndarray, " G"], *, seed: int):
        self._blocks, self._seed = blocks, seed
        self._samples = int(blocks.sum())
        self._starts = np.cumsum(blocks) - blocks
        self._pass = functools.lru_cache(maxsize=4)(self._make_pass)
        self._window = functools.lru_cache(maxsize=4)(self._make_window)

    def __getitem__(self, position: int) -> int:
        number, place = divmod(position, self._samples)
        order, ends = self._pass(number)
        window = int(np.searchsorted(ends[_BLOCKS - 1 :: _BLOCKS], place, side="right"))
        own = slice(window * _BLOCKS, (window + 1) * _BLOCKS)
        begin = int(ends[window * _BLOCKS - 1]) if window else 0
        shuffled = begin + int(self._window(number, window, int(ends[own][-1]) - begin)[place - begin])
        block = int(np.searchsorted(ends, shuffled, side="right"))
        return int(self._starts[order[block]]) + shuffled - int(ends[block] - self._blocks[order[block]])

    def _make_pass(self, number: int) -> tuple[Int64[np.ndarray, " G"], Int64[np.ndarray, " G"]]:
        """Return (the order of the blocks in a pass, how many samples stand up to the end of each)."""
        order = np.random.default_rng((self._seed, number)).permutation(len(self._blocks))
        return order, np.cumsum(self._blocks[order])

    def _make_window(self, number: int, window: int, samples: int) -> Int64[np.ndarray, " _"]:
        """Return the order of the samples of a window."""
        return np.random.default_rng((self._seed, number, window)).permutation(samples)
