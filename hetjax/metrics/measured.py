"""The measure of one answer."""

from __future__ import annotations

from typing import NamedTuple


class Measured(NamedTuple):
    """What one answer adds to a metric: a value, and the weight that the sum of values is divided by."""

    value: float
    weight: float = 1.0
