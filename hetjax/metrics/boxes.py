"""How well a box that an answer names covers the expected one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from hetjax.errors import DataError

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
ENOUGH = 0.5


class Box(NamedTuple):
    """A box by two corners, in any one unit: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Return its area; 0 where the corners are the wrong way round."""
        return max(self.right - self.left, 0.0) * max(self.bottom - self.top, 0.0)


def box_iou(answer: str, expected: Sequence[str]) -> float:
    """Return the area that two boxes share over the area that either covers, from 0 to 1 (intersection over union).

    Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge", section 4.2. A box is the first four
    numbers of a text, left, top, right, bottom, in the same unit on both sides; an answer without four is 0. Raises
    DataError for an expected text without a box.
    """
    said = _box(answer)
    wanted = [_box(each) for each in expected]
    if None in wanted:
        raise DataError(
            f"the expected answer {expected[wanted.index(None)]!r} has no box; the metrics box_iou and box_accuracy "
            "need four numbers, as in [12, 40, 80, 96]"
        )
    return 0.0 if said is None else max(_shared(said, each) for each in wanted)


def box_accuracy(answer: str, expected: Sequence[str]) -> float:
    """Return 1 where `box_iou` is 0.5 or more, else 0, as expressions that refer to objects are counted.

    Yu et al. 2016, "Modeling Context in Referring Expressions", section 5.
    """
    return float(box_iou(answer, expected) >= ENOUGH)


def _box(text: str) -> Box | None:
    numbers = [float(each) for each in _NUMBER.findall(text)]
    return Box(*numbers[:4]) if len(numbers) >= 4 else None


def _shared(a: Box, b: Box) -> float:
    inside = Box(max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)).area
    either = a.area + b.area - inside
    return inside / either if either else 0.0
