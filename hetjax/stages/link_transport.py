"""The transport of a link, from the shapes that its source puts out."""

from __future__ import annotations

from hetjax.boundary import TwoWayTransport
from hetjax.errors import GraphError
from hetjax.stages.flat_state import Shapes
from hetjax.stages.links import Link
from hetjax.stages.stage import Stage


def link_transport(
    link: Link, source: Stage, outputs: Shapes, destination: Stage, *, gradient: bool
) -> TwoWayTransport:
    """Return the transport of a link, with a way back for the gradient where `gradient` says so.

    `outputs` are shape, dtype and sharding by output port of `source`. Raises GraphError for a port that is not among
    them, BatchError where a shape does not divide at the destination.
    """
    if link.source_port not in outputs:
        raise GraphError(
            f"edge {link.name}: module '{source.module}' has no output '{link.source_port}'; "
            f"its outputs are {', '.join(outputs)}"
        )
    leaving = outputs[link.source_port]
    arriving = destination.port_sharding(link.destination_port, leaving.shape)
    return TwoWayTransport(leaving.sharding, arriving, leaving.shape, leaving.dtype, gradient=gradient)
