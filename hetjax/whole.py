"""A module's stages seen as the whole module again.

A stage's arrays have the paths of the whole module. An array that the whole module holds with more
rows is stacked over layers, and each stage has a run of its rows, in stage order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from hetjax.graph import ModuleGraph
from hetjax.stage import Stage
from hetjax.weights import Arrays


def merge_stages(
    graph: ModuleGraph, stages: Sequence[Stage], arrays: Mapping[str, Arrays]
) -> dict[str, dict[str, np.ndarray]]:
    """Host copies of stage arrays by module and whole-module path."""
    merged: dict[str, dict[str, np.ndarray]] = {}
    for module in graph.order:
        parts = [
            jax.device_get(arrays[stage.name]) for stage in stages if stage.module == module and stage.name in arrays
        ]
        paths = dict.fromkeys(path for part in parts for path in part)
        merged[module] = {path: _join([part[path] for part in parts if path in part]) for path in paths}
    return merged


def _join(rows: list[np.ndarray]) -> np.ndarray:
    return rows[0] if len(rows) == 1 else np.concatenate(rows)
