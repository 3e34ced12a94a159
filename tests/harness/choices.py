"""Which of many cases a test runs by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def others_slow(cases: Iterable[Any], default: Sequence[Any]) -> list[Any]:
    """All cases for `pytest.mark.parametrize`, of which those not in `default` are slow, though quickly compiled."""
    return [
        case
        if case in default
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow, pytest.mark.quick])
        for case in cases
    ]
