"""Boundaries: the conversion of a tensor between the shardings of two meshes, both ways.

`plan` says what moves where, without any device; `transport` runs it one way, `two_way` both; `edge` has the
differentiable function.
"""

from hetjax.boundary.edge import Boundary
from hetjax.boundary.plan import BoundaryPlan, PlanHop, make_plan
from hetjax.boundary.tiling import Tiling, tiling_of
from hetjax.boundary.transport import Transport
from hetjax.boundary.two_way import TwoWayTransport

__all__ = ["Boundary", "BoundaryPlan", "PlanHop", "Tiling", "Transport", "TwoWayTransport", "make_plan", "tiling_of"]
