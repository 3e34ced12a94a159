"""Carries the tokens of a link whose routes come with the batch: each to the row and slot that asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from hetjax.boundary import make_plan, tiling_of
from hetjax.boundary.ragged import RaggedTransport
from hetjax.boundary.ragged.two_way import PlacedTables, RaggedWay
from hetjax.compilation.compiled_program import Program
from hetjax.errors import BatchError, GraphError
from hetjax.stages.flat_state import Shapes
from hetjax.stages.link_transport import leaving_port
from hetjax.stages.links import Link
from hetjax.stages.stage import Stage

# B rows of the batch · M token slots of a row of the destination · K 1, or 2 with a number to add


class LinkTraffic(NamedTuple):
    """Bytes of a routed link in a step, forward and backward.

    Attributes:
        needed: bytes that had to move between devices.
        sent: bytes that were sent for it; more than `needed` where the backend has no ragged exchange.
        unrouted: bytes that a boundary of the same layouts moves without routes, padding included.
    """

    needed: int
    sent: int
    unrouted: int


class RoutedLink:
    """Carries what a link's source makes to the slots of its destination that ask for it, and gradients back.

    Where the source's window holds several of the destination's microbatches, each takes its tokens out of the whole
    window, and the gradients that come back are added up.

    Args:
        link, source, destination: the link and its ends.
        outputs: shape, dtype and sharding by output port of the source.
        rows: rows of the batch in a microbatch of the loss.
        routes: shape of the link's routes in a batch: [B, M], or [B, M, 2] where a number is added to each slot.

    Attributes:
        ratio: microbatches of the destination in one of the source.
        port: the output port, "module.port", by which a batch names its routes.
        cut: None, as for a link that cuts no window.
        ways: the transport.

    Raises GraphError for a port without rows and slots, and where a number would be added to what has a gradient.
    """

    cut = None

    def __init__(
        self, link: Link, source: Stage, outputs: Shapes, destination: Stage, rows: int, routes: tuple[int, ...]
    ):
        self.ratio = source.window.size // destination.window.size
        self.name, self._routes = link.name, routes
        self.port = f"{source.module}.{link.source_port}"
        leaving = leaving_port(link, source, outputs)
        self._source_order = source.window.rows(rows)
        self._destination_order = destination.window.rows(rows)
        shifted = len(routes) == 3
        dims = source.port_dims.get(link.source_port, ("batch",))
        if len(leaving.shape) < 2 or dims[0] != "batch" or leaving.shape[0] != len(self._source_order):
            raise GraphError(
                f"edge {link.name}: its routes give tokens to slots of rows, but the output '{link.source_port}' of "
                f"shape {leaving.shape} is no [batch of {len(self._source_order)}, slots, ...]"
            )
        if shifted and link.gradient:
            raise GraphError(
                f"edge {link.name}: routes of shape {routes} add a number to what arrives, which lets no gradient "
                "through; give [batch, slots], or the edge gradient=False"
            )
        shape = (len(self._destination_order), routes[1], *leaving.shape[2:])
        sharding = destination.port_sharding(link.destination_port, shape)
        transport = RaggedTransport(
            leaving.sharding, sharding, leaving.shape, shape, leaving.dtype, gradient=link.gradient, shifted=shifted
        )
        self.ways = (transport,)
        self._unrouted = self._bytes_unrouted(leaving, destination, link)
        self._add: Program | None = None
        if link.gradient and self.ratio > 1 and source.is_local:
            self._add = Program(
                f"{link.name} add", lambda a, b: a + b, source.mesh, leaving, leaving, donate=0,
                out_shardings=leaving.sharding,
            )  # fmt: skip

    def _bytes_unrouted(self, leaving: jax.ShapeDtypeStruct, destination: Stage, link: Link) -> int:
        """Return what a boundary of whole rows moves for a microbatch of the source, both ways."""
        arriving = destination.port_sharding(link.destination_port, leaving.shape)
        tilings = tiling_of(leaving.sharding, len(leaving.shape)), tiling_of(arriving, len(leaving.shape))
        plans = [make_plan(leaving.shape, leaving.dtype.itemsize, *pair) for pair in (tilings, tilings[::-1])]
        return sum(plan.bytes_moved for plan in plans[: 2 if link.gradient else 1])

    @property
    def _transport(self) -> RaggedTransport:
        return self.ways[0]

    @property
    def arriving(self) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of a microbatch at the destination."""
        return self._transport.arriving

    @property
    def is_local(self) -> bool:
        """Whether this process has a part in it."""
        return self._transport.is_local

    @property
    def transports(self) -> Iterator[tuple[bool, RaggedWay]]:
        """Yield both transports, each with whether it carries gradients."""
        yield False, self._transport.forward
        if self._transport.backward is not None:
            yield True, self._transport.backward

    @property
    def each(self) -> int:
        """How many microbatches of a window the transport carries."""
        return self.ratio

    def way(self, microbatch: int) -> RaggedTransport:
        """Return what carries a microbatch of the destination."""
        del microbatch
        return self._transport

    def compile(self) -> RoutedLink:
        """Compile what this process runs of it; harmless to call twice."""
        self._transport.compile()
        if self._add is not None:
            self._add.compile()
        return self

    def hand_out(self, x: jax.Array, microbatch: int) -> dict[int, jax.Array]:
        """Return what the source made in one of its microbatches, by the destination's: each may take any of it."""
        return {microbatch * self.ratio + place: x for place in range(self.ratio)}

    def gather(self, gradients: dict[int, jax.Array], place: int, moved: jax.Array) -> jax.Array | None:
        """Dispatch: the gradient of a window, once those of all its microbatches are there.

        `gradients` keeps the sum so far, by how many are in it; `place` does not matter to a sum.
        """
        del place
        if gradients:
            count, before = gradients.popitem()
            gradients[count + 1] = self._add(before, moved)
        else:
            gradients[1] = moved
        return gradients.get(self.ratio)

    def place(self, routes: Int[np.ndarray, "B M *K"]) -> tuple[dict[int, Mapping[str, PlacedTables]], LinkTraffic]:
        """Dispatch the tables of all microbatches of the destination: (what each takes, what they move).

        `routes` holds for each slot of a row the token that it gets: row * N + slot, with the row in the batch and one
        of the N slots of the source, or -1 for none. Raises BatchError for other shapes, and for tokens that do not
        exist, are of another microbatch of the source, or go to several slots.
        """
        if np.shape(routes)[1:] != self._routes[1:]:
            raise BatchError(
                f"edge {self.name}: routes have shape {np.shape(routes)} in this batch, but programs were compiled for "
                f"{self._routes}; keep shapes fixed"
            )
        size, slots = len(self._destination_order), self._transport.forward.places.source_shape[1]
        tables: dict[int, Mapping[str, PlacedTables]] = {}
        needed = sent = 0
        count = len(routes) // size
        times = np.zeros((count // self.ratio, len(self._source_order) * slots), np.int64)
        for microbatch in range(count):
            own = np.asarray(routes[microbatch * size :][:size])[self._destination_order]
            numbers, shift = (own[..., 0], own[..., 1]) if own.ndim == 3 else (own, None)
            window = microbatch // self.ratio
            numbers = self._in_window(numbers, window, slots)
            times[window] += np.bincount(numbers[numbers >= 0], minlength=times.shape[1])
            self._check_once(times[window], slots)
            placed, traffic = self._transport.place(numbers, shift)
            if self.is_local:
                tables[microbatch] = placed
            needed += sum(each.needed for each in traffic.values())
        for _, way in self.transports:
            always = way.exchange.bytes_sent
            sent += 0 if always is None else count * always
        return tables, LinkTraffic(needed, sent or needed, count // self.ratio * self._unrouted)

    def _check_once(self, times: Int[np.ndarray, " tokens"], slots: int) -> None:
        """Raise BatchError where a token of a window goes to two slots, also those of two microbatches."""
        if np.any(times > 1):
            place, slot = divmod(int(times.argmax()), slots)
            raise BatchError(
                f"edge {self.name}: {int(times.max())} routes ask for slot {slot} of row "
                f"{int(self._source_order[place])} of a microbatch of its encoder; a token may go to one slot"
            )

    def _in_window(self, numbers: Int[np.ndarray, "B M"], window: int, slots: int) -> Int[np.ndarray, "B M"]:
        """Return routes counted from the first row of the source's microbatch, in the order in which its rows lie."""
        size = len(self._source_order)
        row, slot = np.divmod(numbers, slots)
        row = row - window * size
        used = numbers >= 0
        if np.any(used & ((row < 0) | (row >= size))):
            wrong = int(numbers[used & ((row < 0) | (row >= size))][0])
            raise BatchError(
                f"edge {self.name}: a route asks for token {wrong}, slot {wrong % slots} of row {wrong // slots} of "
                f"the batch, which is none of the {size} rows from {window * size} on that are encoded together; move "
                "media only within a microbatch of their encoder"
            )
        place = np.argsort(self._source_order)
        return np.where(used, place[np.where(used, row, 0)] * slots + slot, -1)
