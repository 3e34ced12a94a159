"""hetjax: train multimodal language models in JAX with a mesh of its own for every module."""

from hetjax.boundary import Boundary, BoundaryPlan
from hetjax.errors import HetjaxError
from hetjax.graph import Edge, ModuleGraph
from hetjax.stages.batch import rows_needed
from hetjax.stages.row_subset import RowSubset
from hetjax.state.train_state import TrainState
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
