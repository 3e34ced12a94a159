"""hetjax: train multimodal language models in JAX with a mesh of its own for every module."""

from hetjax.batch import rows_needed
from hetjax.boundary import Boundary, BoundaryPlan
from hetjax.errors import HetjaxError
from hetjax.graph import Edge, ModuleGraph
from hetjax.rows import RowSubset
from hetjax.state import TrainState
from hetjax.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Boundary",
    "BoundaryPlan",
    "Edge",
    "HetjaxError",
    "ModuleGraph",
    "RowSubset",
    "TrainState",
    "Trainer",
    "rows_needed",
]
