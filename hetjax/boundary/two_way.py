"""Both ways over a boundary: the activation from source to destination, its gradient back."""

from __future__ import annotations

import jax
from jax.sharding import NamedSharding

from hetjax.boundary.both_ways import BothWays
from hetjax.boundary.transport import Transport
from hetjax.boundary.ways import Way


class TwoWayTransport(BothWays[Transport]):
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
        super().__init__(Transport(source, destination, shape, dtype, way=way), gradient=gradient)
        self._way = way

    def _make_backward(self) -> Transport:
        forward = self.forward
        return Transport(forward.destination, forward.source, forward.shape, forward.dtype, way=self._way)
