"""Carries the tensor of a link, microbatch by microbatch of its destination."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from hetjax.boundary import Transport, TwoWayTransport
from hetjax.errors import GraphError
from hetjax.stages.flat_state import Shapes
from hetjax.stages.links import Link
from hetjax.stages.stage import Stage
from hetjax.stages.window_cut import Pieces, WindowCut


def link_transport(
    link: Link, source: Stage, outputs: Shapes, destination: Stage, *, gradient: bool
) -> TwoWayTransport:
    """Return the transport of a link, with a way back for the gradient where `gradient` says so.

    `outputs` are shape, dtype and sharding by output port of `source`. Raises GraphError for a port that is not among
    them, BatchError where a shape does not divide at the destination.
    """
    leaving = leaving_port(link, source, outputs)
    arriving = destination.port_sharding(link.destination_port, leaving.shape)
    return TwoWayTransport(leaving.sharding, arriving, leaving.shape, leaving.dtype, gradient=gradient)


class LinkTransport:
    """Carries what a link's source makes to its destination, and gradients back.

    A source whose window holds several of the destination's microbatches hands them out one by one; their gradients
    come back one by one and are joined.

    Args:
        link, source, destination: the link and its ends.
        outputs: shape, dtype and sharding by output port of the source.
        rows: rows of the batch in a microbatch of the loss.

    Attributes:
        ratio: microbatches of the destination in one of the source.
        cut: what cuts a window and joins its gradients; None for a ratio of 1.
        ways: the transports: one, or one from each part of the source's devices (`hetjax.stages.window_cut`).

    Raises GraphError for a port that does not exist or cannot be cut, BatchError where a shape does not divide at the
    destination.
    """

    def __init__(self, link: Link, source: Stage, outputs: Shapes, destination: Stage, rows: int):
        self.ratio = source.window.size // destination.window.size
        self.cut: WindowCut | None = None
        if self.ratio == 1:
            self.ways = (link_transport(link, source, outputs, destination, gradient=link.gradient),)
            return
        leaving = leaving_port(link, source, outputs)
        dim = _batch_dim(link, source, leaving, source.window.size * rows)
        self.cut = WindowCut(leaving, dim, self.ratio, destination.window.size * rows, name=link.name)
        arriving = destination.port_sharding(link.destination_port, self.cut.shape)
        self.ways = tuple(
            TwoWayTransport(sharding, arriving, self.cut.shape, leaving.dtype, gradient=link.gradient)
            for sharding in self.cut.shardings
        )

    @property
    def arriving(self) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of a microbatch at the destination."""
        return self.ways[0].arriving

    @property
    def is_local(self) -> bool:
        """Whether this process has a part in it."""
        return any(way.is_local for way in self.ways)

    @property
    def transports(self) -> Iterator[tuple[bool, Transport]]:
        """Yield all transports, each with whether it carries gradients."""
        for way in self.ways:
            yield False, way.forward
            if way.backward is not None:
                yield True, way.backward

    @property
    def each(self) -> int:
        """How many microbatches of a window each of the ways carries."""
        return 1 if self.cut is None else self.cut.each

    def way(self, microbatch: int) -> TwoWayTransport:
        """Return what carries a microbatch of the destination."""
        return self.ways[microbatch % self.ratio // self.each]

    def compile(self) -> LinkTransport:
        """Compile what this process runs of it; harmless to call twice."""
        for way in self.ways:
            if way.is_local:
                way.compile()
        if self.cut is not None:
            self.cut.compile()
        return self

    def hand_out(self, x: jax.Array, microbatch: int) -> Pieces:
        """Dispatch: what the source made in one of its microbatches, by the destination's microbatches."""
        if self.cut is None:
            return {microbatch: x}
        return {microbatch * self.ratio + place: piece for place, piece in self.cut.cut(x).items()}

    def gather(self, gradients: dict[int, jax.Array], place: int, moved: jax.Array) -> jax.Array | None:
        """Dispatch: the gradient of a window, once those of all its microbatches are there, by their place in it.

        `gradients` holds those that are there, and takes the one that has `moved`.
        """
        gradients[place] = moved
        if len(gradients) < sum(self.each for way in self.ways if way.forward.sends):
            return None
        return gradients[0] if self.cut is None else self.cut.join(gradients)


def leaving_port(link: Link, source: Stage, outputs: Shapes) -> jax.ShapeDtypeStruct:
    """Return shape, dtype and sharding of what a link carries. Raises GraphError for a port that does not exist."""
    if link.source_port not in outputs:
        raise GraphError(
            f"edge {link.name}: module '{source.module}' has no output '{link.source_port}'; "
            f"its outputs are {', '.join(outputs)}"
        )
    return outputs[link.source_port]


def _batch_dim(link: Link, source: Stage, leaving: jax.ShapeDtypeStruct, rows: int) -> int:
    """Return the dim of an output along which its microbatches are cut. Raises GraphError where it has none."""
    dims = source.port_dims.get(link.source_port, ("batch",) if leaving.shape else ())
    if "batch" not in dims or leaving.shape[dims.index("batch")] % rows:
        raise GraphError(
            f"edge {link.name}: module '{source.module}' takes {source.window.size} microbatches at once, but its "
            f"output '{link.source_port}' of shape {leaving.shape} has no dim \"batch\" of {rows} rows to cut them "
            f"along; name it in port_dims, or give '{source.module}' as many microbatches as '{link.destination}'"
        )
    return dims.index("batch")
