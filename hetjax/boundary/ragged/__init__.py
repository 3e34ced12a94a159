"""Ragged boundaries: every token goes where a table says, to any row of another sharding, and its gradient comes back.

`places` says which device holds what, `tables` what each sends and takes for one table of routes, `exchange` carries a
tensor by one program over the devices of both meshes, and `two_way` has both ways.
"""

from hetjax.boundary.ragged.places import RaggedPlaces, inverse_routes
from hetjax.boundary.ragged.tables import DeviceTables, Traffic, make_tables
from hetjax.boundary.ragged.two_way import RaggedTransport

__all__ = ["DeviceTables", "RaggedPlaces", "RaggedTransport", "Traffic", "inverse_routes", "make_tables"]
