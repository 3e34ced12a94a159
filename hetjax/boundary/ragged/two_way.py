"""Both ways over a ragged boundary: tokens to the slots that a table gives them, their gradients back."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int

from hetjax.boundary.both_ways import BothWays
from hetjax.boundary.ends import join_program, split_program
from hetjax.boundary.plan import BoundaryPlan
from hetjax.boundary.ragged.exchange import RaggedExchange
from hetjax.boundary.ragged.places import inverse_routes, make_places
from hetjax.boundary.ragged.tables import Traffic, make_tables
from hetjax.boundary.tiling import tiling_of
from hetjax.compilation.compiled_program import Program
from hetjax.meshes import is_described, local_devices

# B rows and M slots of the destination

PlacedTables = tuple[jax.Array, ...]
"""The tables of one microbatch and one direction, on the devices."""


class RaggedWay:
    """One way over a ragged boundary, for one shape and dtype.

    Every process with a device of `source` or `destination` calls it at the same place of its program: with the array
    on `source`, or None where it has no device of that; it gets the array on `destination`, or None likewise.

    Args:
        source, destination: shardings.
        source_shape, destination_shape: [rows, slots, width] or [rows, slots] on either side.
        dtype: of the tensor.
        shifted: whether a number of the tables is added to what arrives in a slot.

    Attributes:
        places: which device holds what.
        exchange: the program over both meshes, and what it takes.
        programs: once compiled, those that this process runs, by name: "split" on the source mesh and "join" on the
            destination mesh where there is anything to do, and "cross" over both.
        way: "ragged"; None until it is compiled.
    """

    def __init__(
        self,
        source: NamedSharding,
        destination: NamedSharding,
        source_shape: tuple[int, ...],
        destination_shape: tuple[int, ...],
        dtype: jax.typing.DTypeLike,
        *,
        shifted: bool = False,
    ):
        self.source, self.destination, self.dtype = source, destination, jnp.dtype(dtype)
        tilings = tiling_of(source, len(source_shape)), tiling_of(destination, len(destination_shape))
        self.places = make_places(tuple(source_shape), tuple(destination_shape), self.dtype.itemsize, *tilings)
        fine, refined = destination, self.places.destination_fine != self.places.destination
        if refined:
            fine = NamedSharding(destination.mesh, self.places.destination_fine.partition_spec)
        self.exchange = RaggedExchange(self.places, source.mesh, fine, self.dtype, shifted=shifted)
        self.programs: dict[str, Program] = {}
        self.way: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether this process has a part in it."""
        return self.sends or self._receives

    @functools.cached_property
    def sends(self) -> bool:
        """Whether this process has a device of the source."""
        return bool(local_devices(self.source.mesh.devices.flat))

    @functools.cached_property
    def _receives(self) -> bool:
        return bool(local_devices(self.destination.mesh.devices.flat))

    @property
    def arriving(self) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of the tensor at the destination."""
        return jax.ShapeDtypeStruct(self.places.destination_shape, self.dtype, sharding=self.destination)

    @property
    def blank_bytes(self) -> dict[int, int]:
        """Bytes by device id that lie on devices between calls, for where there is no source tile."""
        return self.exchange.blank_bytes

    def compile(self) -> RaggedWay:
        """Compile what this process runs of it, and put on the devices what calls need; harmless to call twice."""
        if self.way is not None or not self.is_local:
            return self
        found = {
            "split": split_program(self._side(self.places.source_shape), self.source, self.dtype, whole=True),
            "cross": self.exchange.program,
            "join": join_program(self._side(self.places.destination_shape), self.destination, self.dtype, whole=True),
        }
        runs = {"split": self.sends, "cross": True, "join": self._receives}
        self.programs = {name: each.compile() for name, each in found.items() if runs[name] and each is not None}
        if not is_described(self.destination.mesh.devices.flat[0]):
            _ = self.exchange.blanks
        self.way = "ragged"
        return self

    def _side(self, shape: tuple[int, ...]) -> BoundaryPlan:
        """Return the plan by which the tensor of one side is split on its mesh, or joined."""
        places = self.places
        return BoundaryPlan(
            shape=shape,
            itemsize=places.itemsize,
            source=places.source,
            destination=places.destination,
            source_fine=places.source_fine,
            destination_fine=places.destination_fine,
            broadcast_axes=(),
        )

    def __call__(self, x: jax.Array | None, tables: PlacedTables) -> jax.Array | None:
        """Dispatch: the tensor on `destination`; None where this process has no device of that."""
        self.compile()
        if x is not None and "split" in self.programs:
            (x,) = self.programs["split"](x)
        arrived = self.exchange(x, tables)
        return arrived if arrived is None or "join" not in self.programs else self.programs["join"](arrived)


class RaggedTransport(BothWays[RaggedWay]):
    """The two ways of a tensor of tokens over a boundary that gives each token a place of its own.

    Args:
        source, destination: shardings of the tensor, and of its gradient the other way round.
        source_shape: [R, N, width] or [R, N]: a token in each slot of each row.
        destination_shape: [B, M, width] or [B, M].
        dtype: of the tensor.
        gradient: whether a gradient comes back.
        shifted: whether a number of each slot is added to what arrives; only without a gradient.

    Raises BoundaryError for shapes that are no tokens, or that do not divide.
    """

    def __init__(
        self,
        source: NamedSharding,
        destination: NamedSharding,
        source_shape: tuple[int, ...],
        destination_shape: tuple[int, ...],
        dtype: jax.typing.DTypeLike,
        *,
        gradient: bool = True,
        shifted: bool = False,
    ):
        forward = RaggedWay(source, destination, source_shape, destination_shape, dtype, shifted=shifted)
        super().__init__(forward, gradient=gradient)

    def _make_backward(self) -> RaggedWay:
        there, places = self.forward, self.forward.places
        shapes = places.destination_shape, places.source_shape
        return RaggedWay(there.destination, there.source, *shapes, there.dtype)

    def place(
        self, routes: Int[np.ndarray, "B M"], shift: Int[np.ndarray, "B M"] | None = None
    ) -> tuple[Mapping[str, PlacedTables], Mapping[str, Traffic]]:
        """Dispatch the tables of one microbatch: (what calls take, by "forward" and "backward"; what either moves).

        `routes` holds for each slot of the destination the number of its token, row * N + slot of the source, or -1
        for none, which gets zeros. Raises BoundaryError for a token that goes to two slots, or that does not exist.
        """
        back = inverse_routes(routes, self.forward.places.source_shape[:2])
        tables, traffic = make_tables(self.forward.places, routes)
        placed, moved = {"forward": self.forward.exchange.place(tables, shift)}, {"forward": traffic}
        if self.backward is not None:
            tables, moved["backward"] = make_tables(self.backward.places, back)
            placed["backward"] = self.backward.exchange.place(tables)
        return placed, moved
