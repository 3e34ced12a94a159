"""hetjax: train multimodal language models in JAX with a mesh of its own for every module.

The public names are imported when they are first used, so that `import hetjax` alone does not import JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hetjax.boundary import Boundary, BoundaryPlan
    from hetjax.compilation.targets import target_devices
    from hetjax.errors import HetjaxError
    from hetjax.graph import Edge, ModuleGraph
    from hetjax.models.metrics import Mean, Sum
    from hetjax.stages.batch import rows_needed
    from hetjax.stages.row_subset import RowSubset
    from hetjax.state.train_state import TrainState
    from hetjax.state.whole_module import module_of, with_module
    from hetjax.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Boundary",
    "BoundaryPlan",
    "Edge",
    "HetjaxError",
    "Mean",
    "ModuleGraph",
    "RowSubset",
    "Sum",
    "TrainState",
    "Trainer",
    "module_of",
    "rows_needed",
    "target_devices",
    "with_module",
]

# The module that defines each public name; the imports above are the same, for editors and type checkers.
_DEFINED_IN = {
    "Boundary": "hetjax.boundary",
    "BoundaryPlan": "hetjax.boundary",
    "Edge": "hetjax.graph",
    "HetjaxError": "hetjax.errors",
    "Mean": "hetjax.models.metrics",
    "ModuleGraph": "hetjax.graph",
    "RowSubset": "hetjax.stages.row_subset",
    "Sum": "hetjax.models.metrics",
    "TrainState": "hetjax.state.train_state",
    "Trainer": "hetjax.trainer",
    "module_of": "hetjax.state.whole_module",
    "rows_needed": "hetjax.stages.batch",
    "target_devices": "hetjax.compilation.targets",
    "with_module": "hetjax.state.whole_module",
}


def __getattr__(name: str) -> object:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'hetjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
