"""Which samples would share rows of a size: the rule by which training packs them, over what samples take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from hetjax.data.chat import best_fit_rows

# M samples · K amounts, tokens first


def shared_rows(
    needs: Int64[np.ndarray, "M K"], capacity: Sequence[int], *, most: int | None = None
) -> list[list[int]]:
    """Return which samples share a row, each of which fits into one: at most `most` samples, or as many as fit."""
    return best_fit_rows(needs, capacity, rows=len(needs), most=len(needs) if most is None else most)
