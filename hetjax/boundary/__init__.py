"""Boundaries: the conversion of a tensor between the shardings of two meshes, both ways.

`plan` plans what moves where, without any device; `transport` runs a plan one way, `two_way` both ways; `boundary` has
the differentiable function.
"""

from hetjax.boundary.boundary import Boundary
from hetjax.boundary.plan import BoundaryPlan, PlanHop, make_plan
from hetjax.boundary.tiling import Tiling, tiling_of
from hetjax.boundary.transport import Transport
from hetjax.boundary.two_way import TwoWayTransport

__all__ = ["Boundary", "BoundaryPlan", "PlanHop", "Tiling", "Transport", "TwoWayTransport", "make_plan", "tiling_of"]
