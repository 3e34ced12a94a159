"""How many scores attention needs, and how many a kernel computes that works on whole blocks, before there is data.

Scopes say what a call is: "causal" where queries see no later key, "packed" where segments divide a row. How long
segments are only data tells. What counts instead is a `Packing`: rows full of the longest segments that settings allow,
which is the most work that they may ask for.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hetjax.models.scopes import scope

_CAUSAL, _PACKED = re.compile(r"\bcausal(\b|_)|_causal\b"), re.compile(r"\bpacked\b")


class Packed(NamedTuple):
    """Neighbouring positions of a row, and how long their segments are taken to be; the last may be shorter."""

    positions: int
    longest: int


Packing = tuple[Packed, ...]
"""A row of a batch, its parts one behind the other; empty where nothing is known of segments."""


class Seen(NamedTuple):
    """What the scopes of a call say: whether it is causal, and whether segments divide its rows."""

    causal: bool
    packed: bool


@contextlib.contextmanager
def attention_scopes(*, causal: bool, packed: bool) -> Iterator[None]:
    """Trace attention in the block in the scopes by which `seen_in` knows what it is."""
    with contextlib.ExitStack() as scopes:
        for name, holds in (("causal", causal), ("packed", packed)):
            if holds:
                scopes.enter_context(scope(name))
        yield


def seen_in(names: str) -> Seen:
    """Return what the scopes in a stack of JAX names say."""
    return Seen(bool(_CAUSAL.search(names)), bool(_PACKED.search(names)))


def score_count(seen: Seen, queries: int, keys: int, packing: Packing = (), blocks: tuple[int, int] = (1, 1)) -> int:
    """Return the scores of a head and a sample that are computed where a kernel visits blocks of (queries, keys).

    A block of queries visits the blocks of keys from the first to the last that any of its queries sees, whole ones
    behind the end, too. Blocks of one are what is needed. Causal queries and keys begin together. Packing counts for
    its row, for a part of it that is attended to alone, and where devices share the row, as the average of its tiles.
    """
    if not any(seen) or (seen.packed and queries != keys):
        return _whole(queries, blocks[0]) * _whole(keys, blocks[1])
    if queries != keys:
        return _visited(True, ((queries, queries),), blocks, keys)
    if not seen.packed:
        return _visited(seen.causal, ((queries, queries),), blocks)
    row = sum(part.positions for part in packing)
    if queries == row:
        return _visited(seen.causal, packing, blocks)
    if own := [part for part in packing if part.positions == queries]:
        return _visited(seen.causal, (own[0],), blocks)
    if row and row % queries == 0:
        of_row = _visited(False, packing, blocks) / row**2
        return round(of_row * _visited(seen.causal, ((queries, queries),), blocks))
    return _visited(seen.causal, ((queries, queries),), blocks)


def _visited(
    causal: bool, packing: tuple[tuple[int, int], ...], blocks: tuple[int, int], keys: int | None = None
) -> int:
    first, last, start = [], [], 0
    for positions, longest in packing:
        place = np.arange(positions)
        first.append(start + place // longest * longest)
        ends = np.minimum(first[-1] + longest, start + positions) - 1
        last.append(start + place if causal else ends)
        start += positions
    of_first, of_last = np.concatenate(first), np.concatenate(last)
    begins = np.arange(0, start, blocks[0])
    ends = np.minimum(begins + blocks[0], start) - 1
    of_last = of_last if keys is None else np.minimum(of_last, keys - 1)
    visited = of_last[ends] // blocks[1] - of_first[begins] // blocks[1] + 1
    return int(visited.sum()) * blocks[0] * blocks[1]


def _whole(length: int, block: int) -> int:
    return -(-length // block) * block
