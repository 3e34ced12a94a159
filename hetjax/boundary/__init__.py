"""Boundaries: the conversion of a tensor between the shardings of two meshes, both ways."""

from hetjax.boundary.edge import Boundary
from hetjax.boundary.plan import BoundaryPlan, PlanStep, make_plan
from hetjax.boundary.tiling import Tiling, tiling_of
from hetjax.boundary.transport import Transport

__all__ = ["Boundary", "BoundaryPlan", "PlanStep", "Tiling", "Transport", "make_plan", "tiling_of"]
