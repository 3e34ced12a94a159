"""hetjax: train multimodal language models in JAX with a mesh of its own for every module."""

from hetjax.boundary import Boundary, BoundaryPlan
from hetjax.errors import HetjaxError
from hetjax.graph import Edge, ModuleGraph
from hetjax.state import TrainState
from hetjax.trainer import Trainer

__all__ = ["Boundary", "BoundaryPlan", "Edge", "HetjaxError", "ModuleGraph", "TrainState", "Trainer"]
