"""Count the positions of a prompt by time, row and column, as the rotary embedding of Qwen2-VL does (2024)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int32

# S positions of a sample


def coordinates(length: int, images: Iterable[tuple[int, tuple[int, int]]]) -> Int32[np.ndarray, "S 3"]:
    """Return time, row and column of each of `length` positions.

    Text counts one by one, in all three alike. The tokens of an image stand still in time, and count rows and columns
    from there; what is behind it goes on after as many as its longer side has tokens.

    Args:
        length: positions.
        images: (position of its first token, (rows, columns) of its tokens) of each image, or tubelet of a video.
    """
    made = np.empty((length, 3), np.int32)
    now = position = 0
    for start, (rows, columns) in [*sorted(images), (length, (0, 0))]:
        made[position:start] = np.arange(now, now + start - position)[:, None]
        now += start - position
        grid = made[start : start + rows * columns].reshape(rows, columns, 3)
        grid[...] = now
        grid[..., 1] += np.arange(rows)[:, None]
        grid[..., 2] += np.arange(columns)
        now, position = now + max(rows, columns), start + rows * columns
    return made
