"""Both ways over a boundary: the activation from source to destination, its gradient back."""

from __future__ import annotations

import functools

import jax
from jax.sharding import NamedSharding

from hetjax.boundary.transport import Transport
from hetjax.boundary.ways import Way


class TwoWayTransport:
    """The two transports of one tensor over a boundary, for one shape and dtype.

    `hetjax.Boundary` holds one for each shape that it meets, a trainer one for each link between stages, generation
    one for each link without a gradient.

    Args:
        source, destination: shardings of the tensor, and of its gradient the other way round.
        shape, dtype: of the tensor.
        gradient: whether a gradient comes back.
        way: how to carry either (`hetjax.boundary.ways`); None lets the devices decide.

    Raises BoundaryError when a side does not divide the shape, or the devices do not allow the way forward.
    """

    def __init__(
        self,
        source: NamedSharding,
        destination: NamedSharding,
        shape: tuple[int, ...],
        dtype: jax.typing.DTypeLike,
        *,
        gradient: bool = True,
        way: Way | None = None,
    ):
        self.forward = Transport(source, destination, shape, dtype, way=way)
        self._gradient, self._way = gradient, way

    @functools.cached_property
    def backward(self) -> Transport | None:
        """The transport of the gradient, None where none comes back. Raises BoundaryError as `Transport` does."""
        if not self._gradient:
            return None
        forward = self.forward
        return Transport(forward.destination, forward.source, forward.shape, forward.dtype, way=self._way)

    @property
    def is_local(self) -> bool:
        """Whether this process has a part in it."""
        return self.forward.is_local

    @property
    def arriving(self) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of the tensor at the destination."""
        return self.forward.arriving

    def compile(self) -> TwoWayTransport:
        """Compile what this process runs of either way; harmless to call twice."""
        self.forward.compile()
        if self.backward is not None:
            self.backward.compile()
        return self
