"""Runs a boundary's plan, from device to device and never through the host.

`jax.device_put` of a whole sharded array reads it to the host whenever a destination shard is not
also a shard of the source, and across processes it asks for equal partitions. So a plan runs in one
of these ways:

- "stay": every device has its part already; the array gets its new sharding.
- "reshard": one program over devices that both meshes list alike, by XLA's partitioner, where the
  compiled program sends no more than the plan says.
- "copies": in one process, `jax.device_put` of single-device pieces, each of them a whole array.
- "exchange": one program over the devices of both meshes, in any number of processes.
- "device_put": across hosts, where the backend can and each device sends all it has to one other. Only on request.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from hetjax.boundary.bits import from_bits, to_bits
from hetjax.boundary.ends import Program, groups, join_program, leading, split_program
from hetjax.boundary.exchange import Exchange
from hetjax.boundary.plan import make_plan
from hetjax.boundary.route import Move
from hetjax.boundary.tiling import tiling_of
from hetjax.compilation.dispatch_order import in_order
from hetjax.compilation.hlo import bytes_received
from hetjax.errors import BoundaryError

Way = Literal["stay", "reshard", "copies", "exchange", "device_put"]


class _Hop(NamedTuple):
    """Copies that start together: what is taken and where it goes, each (slot, device id), and those devices."""

    takes: list[tuple[int, int]]
    places: list[tuple[int, int]]
    targets: list[jax.Device]


class Transport:
    """A compiled crossing for one shape and dtype.

    Every process with a device of `source` or `destination` calls it at the same place of its program:
    with the array on `source`, or None where it has no device of that; it gets the array on
    `destination`, or None likewise.

    Args:
        source, destination: shardings.
        shape, dtype: of the tensor.
        way: how to run the plan; None lets the devices decide.

    Raises BoundaryError when a side does not divide the shape, or the devices cannot go that way.
    """

    def __init__(
        self,
        source: NamedSharding,
        destination: NamedSharding,
        shape: tuple[int, ...],
        dtype: jax.typing.DTypeLike,
        *,
        way: Way | None = None,
    ):
        self.source, self.destination = source, destination
        self.shape, self.dtype = tuple(shape), jnp.dtype(dtype)
        ndim = len(self.shape)
        self.plan = make_plan(self.shape, self.dtype.itemsize, tiling_of(source, ndim), tiling_of(destination, ndim))
        self._asked = way
        self._check_way(way)
        self.way: Way | None = None
        self._across: Program | None = None

    @functools.cached_property
    def is_local(self) -> bool:
        """Whether this process has a part in it."""
        return bool(self.source.mesh.local_devices or self.destination.mesh.local_devices)

    # ── choosing ─────────────────────────────────────────────────────────────────────────────────

    def _check_way(self, way: Way | None) -> None:
        """Raise BoundaryError for a way that these devices cannot go."""
        if way is None:
            return
        if way not in get_args(Way):
            raise BoundaryError(f"way={way!r} is unknown; the ways are {', '.join(get_args(Way))}, or None to choose")
        able = {
            "stay": (self.plan.stays, "a device does not hold its part yet"),
            "reshard": (self._same_devices, "the meshes do not list the same devices in the same order"),
            "copies": (self._in_one_process, "the devices are in several processes"),
            "device_put": (self._pieces_match, "a device sends to several, or receives from several"),
            "exchange": (True, ""),
        }
        fits, reason = able[way]
        if not fits:
            raise BoundaryError(f"way='{way}' cannot carry {self.source} to {self.destination}: {reason}; leave it out")

    @property
    def _same_devices(self) -> bool:
        return self.plan.source.devices == self.plan.destination.devices

    @property
    def _in_one_process(self) -> bool:
        meshes = self.source.mesh, self.destination.mesh
        return len({device.process_index for mesh in meshes for device in mesh.devices.flat}) == 1

    @property
    def _pieces_match(self) -> bool:
        """Whether the device at each place of one mesh sends its whole tile to the one at that place of the other."""
        fine, other = self.plan.source_fine, self.plan.destination_fine
        return (
            self.plan.disjoint
            and not self.plan.broadcast_axes
            and fine.counts == other.counts
            and list(fine.tile_of.values()) == list(other.tile_of.values())
        )

    def compile(self) -> Transport:
        """Compile what this process runs of it; harmless to call twice."""
        if self.way is not None or not self.is_local:
            return self
        way = self._asked or self._default_way()
        if way == "reshard":
            program = self._reshard()
            # The partitioner may take a detour; then pieces go straight instead.
            if self._asked is None and not _sends_at_most(program, self.plan.bytes_moved):
                way = "exchange"
            else:
                self._across = in_order(program, self.destination.mesh)
        if way in ("copies", "exchange", "device_put"):
            self._compile_ends(whole=way != "copies")
        if way == "copies":
            self._wire()
        if way == "exchange":
            self._across = Exchange(self.plan, self.source.mesh, self._fine, self.dtype)
        self.way = way
        return self

    def _default_way(self) -> Way:
        if self.plan.stays:
            return "stay"
        if self._same_devices and self.plan.source.in_order and self.plan.destination.in_order:
            return "reshard"
        if set(self.plan.source.devices) == set(self.plan.destination.devices) or not self._in_one_process:
            return "exchange"
        return "copies"

    def _reshard(self) -> jax.stages.Compiled:
        def move(x: jax.Array) -> jax.Array:
            bits = jax.lax.with_sharding_constraint(to_bits(x), self.source)
            return from_bits(jax.lax.with_sharding_constraint(bits, self.destination), self.dtype)

        argument = jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=self.source)
        return jax.jit(move, out_shardings=self.destination).lower(argument).compile()

    def _compile_ends(self, *, whole: bool) -> None:
        if self.source.mesh.local_devices:
            self._split = in_order(split_program(self.plan, self.source, self.dtype, whole=whole), self.source.mesh)
        if self.destination.mesh.local_devices:
            join = join_program(self.plan, self.destination, self.dtype, whole=whole)
            self._join = in_order(join, self.destination.mesh)

    @functools.cached_property
    def _fine(self) -> NamedSharding:
        """What crosses arrives so, before it is joined."""
        if self.plan.destination_fine == self.plan.destination:
            return self.destination
        return NamedSharding(self.destination.mesh, self.plan.destination_fine.partition_spec)

    @functools.cached_property
    def _nothing(self) -> jax.Array:
        """What leaves a process without a device of the source."""
        sharding = NamedSharding(self.source.mesh, self.plan.source_fine.partition_spec)
        return jax.make_array_from_single_device_arrays(leading(self.shape), sharding, [], dtype=self.dtype)

    @functools.cached_property
    def moves(self) -> tuple[Move, ...]:
        """Those of the plan."""
        return self.plan.moves

    def _wire(self) -> None:
        """Look up once which device puts what where."""
        devices = {device.id: device for device in self.destination.mesh.devices.flat}
        moves = {(move.destination_slot, move.destination): move for move in self.moves}
        slots = sorted({slot for slot, _ in moves})
        self._places = [(slot, device) for slot in slots for device in self.plan.destination.devices]
        self._hops = []
        for hop in sorted({move.hop for move in self.moves}):
            places = [place for place in self._places if place in moves and moves[place].hop == hop]
            takes = [(moves[place].source_slot, moves[place].source) for place in places]
            self._hops.append(_Hop(takes=takes, places=places, targets=[devices[device] for _, device in places]))
        self._blanks = {
            (slot, device): jax.device_put(np.zeros(self.plan.piece_shape, self.dtype), devices[device])
            for slot, device in self._places
            if (slot, device) not in moves
        }
        shape = tuple(
            piece * count for piece, count in zip(self.plan.piece_shape, self.plan.destination_fine.counts, strict=True)
        )
        self._assemble = functools.partial(jax.make_array_from_single_device_arrays, shape, self._fine)

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    def __call__(self, x: jax.Array | None) -> jax.Array | None:
        if self.way is None:
            self.compile()
        match self.way:
            case "stay":
                return self._stay(x)
            case "reshard":
                return x if self.source == self.destination else self._across(x)
            case "copies":
                return self._join(*self._copy(self._split(x)))
            case "exchange":
                arrived = self._across(None if x is None else self._split(x)[0])
                return None if arrived is None else self._join(arrived)
            case "device_put":
                arrived = jax.device_put(self._nothing if x is None else self._split(x)[0], self._fine)
                return self._join(arrived) if self.destination.mesh.local_devices else None

    def _stay(self, x: jax.Array | None) -> jax.Array | None:
        """The same buffers under the destination's own mesh and axis names."""
        if x is None or self.source == self.destination:
            return x
        wanted = set(self.destination.mesh.local_devices)
        shards = [shard.data for shard in x.addressable_shards if shard.device in wanted]
        if not shards:
            return None
        return jax.make_array_from_single_device_arrays(x.shape, self.destination, shards)

    def _copy(self, slots: tuple[jax.Array, ...]) -> list[jax.Array]:
        held = {(i, shard.device.id): shard.data for i, slot in enumerate(slots) for shard in slot.addressable_shards}
        arrived = dict(self._blanks)
        for hop in self._hops:
            moved = jax.device_put([held[take] for take in hop.takes], hop.targets)
            arrived.update(zip(hop.places, moved, strict=True))
            # What is handed on after the first hop lies where it arrived.
            held = arrived
        pieces = [arrived[place] for place in self._places]
        return [self._assemble(group) for group in groups(pieces, len(self.plan.destination.devices))]


def _sends_at_most(program: jax.stages.Compiled, limit: int) -> bool:
    """Whether a program's collectives are known and move no more bytes."""
    try:
        return bytes_received(program.as_text()) <= limit
    except ValueError:
        return False
