"""Check the values of a batch on the host: numbers that are none, ids that stand for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from hetjax.errors import BatchError
from hetjax.stages.row_subset import RowSubset
from hetjax.stages.stage import Stage

Inputs: TypeAlias = Mapping[str, Mapping[str, object]]
"""{module: {port: array}}; arrays of JAX are on devices already and not looked at."""


def check_values(inputs: Inputs, stages: Sequence[Stage]) -> None:
    """Raise BatchError for a number that is not finite, or an id outside of the range that its module gives.

    On a device an id out of range reads another row of a table, and trains in silence. Of ids that a weight belongs to,
    those of weight 0 may be anything.
    """
    for module, arrays in inputs.items():
        for port, given in arrays.items():
            array = _on_host(given)
            if array is not None and np.issubdtype(array.dtype, np.inexact):
                _check_finite(array, module, port)
    for stage in stages:
        arrays = inputs.get(stage.module, {})
        for port, (low, high) in stage.input_ranges.items():
            ids = _on_host(arrays.get(port))
            if ids is not None and ids.size:
                counted = _on_host(arrays.get(stage.counted_by.get(port, "")))
                _check_range(ids, low, high, counted, stage.module, port)


def _on_host(array: object) -> np.ndarray | None:
    array = array.values if isinstance(array, RowSubset) else array
    return array if isinstance(array, np.ndarray) else None


def _check_finite(array: np.ndarray, module: str, port: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        # One pass that makes no array; only a sum that is no number is looked into.
        if np.isfinite(np.sum(array)):
            return
    bad = ~np.isfinite(array)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BatchError(
            f"module '{module}': input '{port}' has {np.count_nonzero(bad)} values that are no finite number, the "
            f"first at {list(place)}: {array[place]}; leave that sample out, or mend what made it"
        )


def _check_range(ids: np.ndarray, low: int, high: int, counted: np.ndarray | None, module: str, port: str) -> None:
    if low <= ids.min() and ids.max() <= high:
        return
    outside = (ids < low) | (ids > high)
    if counted is not None:
        outside &= counted != 0
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise BatchError(
            f"module '{module}': input '{port}' has ids from {ids[outside].min()} to {ids[outside].max()}, outside of "
            f"{low} to {high}, the first at {list(place)}; use the tokenizer of the model, or give it more embeddings"
        )
