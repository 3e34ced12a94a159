"""Carries one tensor from one sharding to another by a boundary's plan, from device to device, not through the host."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hetjax.boundary.bits import from_bits, to_bits
from hetjax.boundary.copies import Copies
from hetjax.boundary.ends import join_program, leading, split_program
from hetjax.boundary.exchange import Exchange
from hetjax.boundary.plan import make_plan
from hetjax.boundary.tiling import tiling_of
from hetjax.boundary.ways import Way, check_way, default_way
from hetjax.compilation.compiled_program import Program
from hetjax.compilation.hlo import bytes_received
from hetjax.meshes import is_described, local_devices


class Transport:
    """One way over a boundary, for one shape and dtype.

    Every process with a device of `source` or `destination` calls it at the same place of its program:
    with the array on `source`, or None where it has no device of that; it gets the array on
    `destination`, or None likewise.

    Args:
        source, destination: shardings.
        shape, dtype: of the tensor.
        way: how to run the plan (`hetjax.boundary.ways`); None lets the devices decide.

    Attributes:
        plan: what moves where.
        way: the way taken; None until it is compiled.
        programs: once compiled, those that this process runs, by name: "split" on the source mesh and "join" on the
            destination mesh where there is anything to do, and "cross" over both meshes for "reshard" and "exchange".
        copies: what the way "copies" runs in place of "cross", once compiled.

    Raises BoundaryError when a side does not divide the shape, or the devices do not allow the way.
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
        if way is not None:
            check_way(way, self.plan, source, destination)
        self._asked = way
        self.way: Way | None = None
        self.programs: dict[str, Program] = {}
        self.copies: Copies | None = None
        self._exchange: Exchange | None = None

    @functools.cached_property
    def is_local(self) -> bool:
        """Whether this process has a part in it."""
        return bool(self._senders or self._receivers)

    @property
    def sends(self) -> bool:
        """Whether this process has a device of the source."""
        return bool(self._senders)

    @functools.cached_property
    def _senders(self) -> frozenset[jax.Device]:
        """Devices of the source for which this process runs programs."""
        return frozenset(local_devices(self.source.mesh.devices.flat))

    @functools.cached_property
    def _receivers(self) -> frozenset[jax.Device]:
        """The same of the destination."""
        return frozenset(local_devices(self.destination.mesh.devices.flat))

    @property
    def arriving(self) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of the tensor at the destination."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=self.destination)

    @property
    def blank_bytes(self) -> dict[int, int]:
        """Bytes by device id that lie on devices between calls, for where no piece arrives; once compiled."""
        return {device: size for part in self._parts for device, size in part.blank_bytes.items()}

    @property
    def _parts(self) -> list[Copies | Exchange]:
        """What runs the way beside programs of one mesh."""
        return [part for part in (self.copies, self._exchange) if part is not None]

    # ── compilation ──────────────────────────────────────────────────────────────────────────────

    def compile(self) -> Transport:
        """Compile what this process runs of it, and put on the devices what calls need; harmless to call twice.

        Nothing is put on a device that is only described.
        """
        self.compile_programs()
        if not is_described(self.destination.mesh.devices.flat[0]):
            for part in self._parts:
                _ = part.blanks
        return self

    def compile_programs(self) -> None:
        """Choose the way and compile its programs. Puts nothing on a device, which may be one only described."""
        if self.way is not None or not self.is_local:
            return
        way = self._asked or default_way(self.plan, self.source, self.destination)
        if way == "reshard":
            reshard = self._reshard().compile()
            # The partitioner may take a detour; then pieces go straight instead.
            if self._asked is None and not _sends_at_most(reshard, self.plan.bytes_moved):
                way = "exchange"
            else:
                self.programs["cross"] = reshard
        if way in ("copies", "exchange", "device_put"):
            self._compile_ends(whole=way != "copies")
        if way == "copies":
            self.copies = Copies(self.plan, self._fine, self.dtype)
        if way == "exchange":
            self._exchange = Exchange(self.plan, self.source.mesh, self._fine, self.dtype)
            self.programs["cross"] = self._exchange.program.compile()
        self.way = way

    def _reshard(self) -> Program:
        def move(x: jax.Array) -> jax.Array:
            bits = jax.lax.with_sharding_constraint(to_bits(x), self.source)
            return from_bits(jax.lax.with_sharding_constraint(bits, self.destination), self.dtype)

        argument = jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=self.source)
        return Program("boundary reshard", move, self.destination.mesh, argument, out_shardings=self.destination)

    def _compile_ends(self, *, whole: bool) -> None:
        ends: dict[str, Program | None] = {}
        if self._senders:
            ends["split"] = split_program(self.plan, self.source, self.dtype, whole=whole)
        if self._receivers:
            ends["join"] = join_program(self.plan, self.destination, self.dtype, whole=whole)
        self.programs |= {name: program.compile() for name, program in ends.items() if program is not None}

    @functools.cached_property
    def _fine(self) -> NamedSharding:
        """Sharding of a slot as it arrives, before slots are joined."""
        if self.plan.destination_fine == self.plan.destination:
            return self.destination
        return NamedSharding(self.destination.mesh, self.plan.destination_fine.partition_spec)

    @functools.cached_property
    def _nothing(self) -> jax.Array:
        """The argument of a process without a device of the source: an array without a shard."""
        sharding = NamedSharding(self.source.mesh, self.plan.source_fine.partition_spec)
        return jax.make_array_from_single_device_arrays(leading(self.shape), sharding, [], dtype=self.dtype)

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    def __call__(self, x: jax.Array | None) -> jax.Array | None:
        """Dispatch: the tensor on `destination`; None where this process has no device of that."""
        if self.way is None:
            self.compile()
        match self.way:
            case "stay":
                return self._stay(x)
            case "reshard":
                return x if self.source == self.destination else self.programs["cross"](x)
            case "copies":
                return self._join(*self.copies(self._split(x)))
            case "exchange":
                arrived = self._exchange(None if x is None else self._split(x)[0])
                return None if arrived is None else self._join(arrived)
            case "device_put":
                arrived = jax.device_put(self._nothing if x is None else self._split(x)[0], self._fine)
                return self._join(arrived) if self._receivers else None

    def _stay(self, x: jax.Array | None) -> jax.Array | None:
        """Return the same buffers under the destination's own mesh and axis names."""
        if x is None or self.source == self.destination:
            return x
        shards = [shard.data for shard in x.addressable_shards if shard.device in self._receivers]
        if not shards:
            return None
        return jax.make_array_from_single_device_arrays(x.shape, self.destination, shards)

    def _split(self, x: jax.Array) -> tuple[jax.Array, ...]:
        program = self.programs.get("split")
        return (x,) if program is None else program(x)

    def _join(self, *slots: jax.Array) -> jax.Array:
        program = self.programs.get("join")
        return slots[0] if program is None else program(*slots)


def _sends_at_most(program: Program, limit: int) -> bool:
    """Whether a program's collectives are known and move no more bytes."""
    try:
        return bytes_received(program.text) <= limit
    except ValueError:
        return False
