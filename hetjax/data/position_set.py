"""Positions in a stream as a short text, for its saved state."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def pack_positions(positions: Sequence[int]) -> list[Any]:
    """Return ascending positions as [the first one, which of those behind it there are], fit for JSON; [] for none."""
    if not positions:
        return []
    present = np.zeros(positions[-1] - positions[0] + 1, bool)
    present[np.asarray(positions) - positions[0]] = True
    return [positions[0], base64.b85encode(zlib.compress(np.packbits(present).tobytes(), 9)).decode()]


def unpack_positions(packed: Sequence[Any]) -> list[int]:
    """Return the positions of what `pack_positions` returned; a plain list of them is one already."""
    if len(packed) != 2 or not isinstance(packed[1], str):
        return list(packed)
    first, text = packed
    present = np.unpackbits(np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8))
    return (np.flatnonzero(present) + first).tolist()
