"""Says which dims of a module's weights are rows and columns of a matrix, for Muon."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optax.contrib import MuonDimensionNumbers

from hetjax.graph import ModuleGraph
from hetjax.optimizers.module_weights import LAYERS, cut_weights
from hetjax.stages.flat_state import flatten_module

EMBED, VOCABULARY, EXPERTS = "embed", "vocab", "experts"
"""Dim names of `hetjax.models`: the width of the residual stream, of which every matrix has one, and of what it may be
the other side of or a stack of."""


def muon_dimensions(graph: ModuleGraph, module: str) -> Mapping[str, MuonDimensionNumbers | None]:
    """Return for each weight of a module, by path, the dims of one layer that Muon takes for rows and columns.

    For `optax.contrib.muon(muon_weight_dimension_numbers=muon_weights(graph, module))`. A weight with heads,
    ["embed", "heads", "head_dim"], is the matrix [embed, heads * head_dim]; experts are a stack of matrices. None, for
    Adam, stands at what is no matrix between hidden layers: embeddings, heads over a vocabulary, convolutions, biases.
    Weights without dim names are matrices where they have two dims.
    """
    skeleton, params, _ = flatten_module(graph.abstract(module))
    unnamed = {path: aval.shape for path, aval in params.items() if path not in skeleton.dims}
    stacked = cut_weights(graph, module, unnamed)
    return {
        path: _dimensions(skeleton.dims.get(path), len(aval.shape) - (path in stacked)) for path, aval in params.items()
    }


def muon_weights(
    graph: ModuleGraph, module: str
) -> Callable[[Mapping[str, object]], dict[str, MuonDimensionNumbers | None]]:
    """Return `muon_dimensions` as the function of a module's trained weights that `optax.contrib.muon` takes."""
    dimensions = muon_dimensions(graph, module)
    return lambda params: {path: dimensions[path] for path in params}


def _dimensions(dims: tuple[str | None, ...] | None, count: int) -> MuonDimensionNumbers | None:
    if dims is None:
        return MuonDimensionNumbers(0, 1) if count == 2 else None
    dims = tuple(dims)
    while dims and dims[0] == LAYERS:
        dims = dims[1:]
    sides = [i for i, dim in enumerate(dims) if dim != EXPERTS]
    if len(sides) < 2 or VOCABULARY in dims or EMBED not in (dims[sides[0]], dims[sides[-1]]):
        return None
    if dims[sides[0]] == EMBED:
        return MuonDimensionNumbers(tuple(sides[:1]), tuple(sides[1:]))
    return MuonDimensionNumbers(tuple(sides[:-1]), tuple(sides[-1:]))
