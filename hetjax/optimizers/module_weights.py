"""Finds the trained weights of a module and the dims of layers that lead them, the same on every placement."""

from __future__ import annotations

from collections.abc import Sequence

from hetjax.errors import HetjaxError
from hetjax.graph import ModuleGraph
from hetjax.optimizers.layerwise import Weight
from hetjax.stages.cut import cut_module
from hetjax.stages.flat_state import Skeleton, flatten_module
from hetjax.stages.stage import Stage

LAYERS = "layers"
"""The name of a dim over which layers are stacked; patterns of layers have several."""


def module_weights(graph: ModuleGraph, stages: Sequence[Stage]) -> dict[str, Weight]:
    """Return the trained weights of one module, by path, as an optimizer sees them; `stages` are the module's.

    Dims of layers are those named "layers" that lead a weight. A weight without names is stacked if a cut into stages
    takes a part of it.
    """
    module = stages[0].module
    skeleton, whole, _ = flatten_module(graph.abstract(module))
    trained = {path: aval for stage in stages for path, aval in stage.trained.items()}
    unnamed = {path: whole[path].shape for path in trained if path not in skeleton.dims}
    stacked = cut_weights(graph, module, unnamed)
    return {
        path: Weight(shape=shape[count:], dtype=trained[path].dtype, layer_dims=count)
        for path, shape in ((path, whole[path].shape) for path in whole if path in trained)
        for count in (int(path in stacked) or _leading_layers(skeleton, path),)
    }


def _leading_layers(skeleton: Skeleton, path: str) -> int:
    dims = skeleton.dims.get(path, ())
    return next((i for i, dim in enumerate(dims) if dim != LAYERS), len(dims))


def cut_weights(graph: ModuleGraph, module: str, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """The weights of which a stage takes a part, found by cutting the module into stages of one layer each."""
    found: set[str] = set()
    if not hasattr(graph.abstract(module), "stage"):
        return found
    for count in sorted({shape[0] for shape in shapes.values() if len(shape) > 1 and shape[0] > 1}):
        try:
            _, part, _ = flatten_module(cut_module(graph.abstract(module), module, 0, count))
        except (HetjaxError, ValueError, TypeError, IndexError, ZeroDivisionError):
            continue  # not so many layers
        found |= {path for path, shape in shapes.items() if path in part and part[path].shape != shape}
    return found
