"""Cuts an array with the rows of several microbatches into one for each, where they lie, and joins such arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hetjax.compilation.compiled_program import Program
from hetjax.meshes import local_devices

Pieces = Mapping[int, jax.Array]
"""Arrays by the place of their microbatch in the window; those that this process holds a part of."""


class WindowCut:
    """Cuts the array of a window along its batch dim, and joins gradients of the pieces; nothing moves between devices.

    Where the batch dim's degree divides the rows of a microbatch, each device holds a part of every microbatch.
    Otherwise the devices are in *parts*, each of which has the rows of microbatches of its own: a piece then lies on
    the devices of one part. `hetjax.stages.windows.Window.rows` is the order of rows that this takes.

    Args:
        window: shape, dtype and sharding of the array.
        dim: its batch dim.
        count: microbatches in the window.
        rows: rows of the batch in a microbatch.

    Attributes:
        each: how many microbatches lie in a part.
        shardings: of the pieces in each part.
        shape: of a piece.
        programs: where a part has several microbatches, its "cut" and its "join", by name and part.
    """

    def __init__(self, window: jax.ShapeDtypeStruct, dim: int, count: int, rows: int, *, name: str):
        self.window, self.dim = window, dim
        spec = (*window.sharding.spec, *[None] * (len(window.shape) - len(window.sharding.spec)))
        axes = spec[dim] or ()
        axes = (axes,) if isinstance(axes, str) else tuple(axes)
        degree = math.prod(window.sharding.mesh.shape[axis] for axis in axes)
        parts = degree // math.gcd(rows, degree)
        self.each = count // parts
        self.shape = tuple(size // count if at == dim else size for at, size in enumerate(window.shape))
        self.shardings = _part_shardings(window.sharding, spec, dim, axes, parts)
        self.programs: dict[str, Program] = {}
        for part, sharding in enumerate(self.shardings):
            if self.each > 1 and local_devices(sharding.mesh.devices.flat):
                cut, join = self._programs(name, sharding)
                self.programs |= {_label("cut", part): cut, _label("join", part): join}

    def _programs(self, name: str, sharding: NamedSharding) -> tuple[Program, Program]:
        """Return what cuts and what joins the microbatches of a part: every device its own rows."""
        mesh, spec, each, dim = sharding.mesh, sharding.spec, self.each, self.dim
        whole = jax.ShapeDtypeStruct(self._part_shape, self.window.dtype, sharding=sharding)
        piece = jax.ShapeDtypeStruct(self.shape, self.window.dtype, sharding=sharding)
        cut = jax.shard_map(
            lambda block: tuple(jnp.split(block, each, dim)),
            mesh=mesh,
            in_specs=spec,
            out_specs=(spec,) * each,
            check_vma=False,
        )
        join = jax.shard_map(
            lambda *blocks: jnp.concatenate(blocks, dim),
            mesh=mesh,
            in_specs=(spec,) * each,
            out_specs=spec,
            check_vma=False,
        )
        return (
            Program(f"{name} cut", cut, mesh, whole, out_shardings=(sharding,) * each),
            Program(f"{name} join", join, mesh, *[piece] * each, out_shardings=sharding),
        )

    @property
    def _part_shape(self) -> tuple[int, ...]:
        return tuple(size * self.each if at == self.dim else size for at, size in enumerate(self.shape))

    def compile(self) -> WindowCut:
        """Compile what this process runs of it; harmless to call twice."""
        for program in self.programs.values():
            program.compile()
        return self

    def cut(self, x: jax.Array) -> Pieces:
        """Dispatch: the microbatches of a window."""
        pieces: dict[int, jax.Array] = {}
        for part, sharding in enumerate(self.shardings):
            own = _under(x, self._part_shape, sharding)
            if own is not None:
                program = self.programs.get(_label("cut", part))
                cut = (own,) if program is None else program(own)
                pieces |= {part * self.each + place: piece for place, piece in enumerate(cut)}
        return pieces

    def join(self, pieces: Pieces) -> jax.Array:
        """Dispatch: the window of all these microbatches."""
        blocks: list[jax.Array] = []
        for part in range(len(self.shardings)):
            own = [pieces[place] for place in range(part * self.each, (part + 1) * self.each) if place in pieces]
            if own:
                program = self.programs.get(_label("join", part))
                joined = own[0] if program is None else program(*own)
                blocks += [shard.data for shard in joined.addressable_shards]
        return jax.make_array_from_single_device_arrays(self.window.shape, self.window.sharding, blocks)


def _label(kind: str, part: int) -> str:
    return f"{kind}.{part}" if part else kind


def _part_shardings(
    sharding: NamedSharding, spec: tuple, dim: int, axes: tuple[str, ...], parts: int
) -> tuple[NamedSharding, ...]:
    """Return the sharding of a microbatch in each part: every `parts`-th shard of the batch dim, from its place on."""
    if parts == 1:
        return (sharding,)
    mesh = sharding.mesh
    others = tuple(axis for axis in mesh.axis_names if axis not in axes)
    devices = np.transpose(mesh.devices, [mesh.axis_names.index(axis) for axis in (*axes, *others)])
    devices = devices.reshape(-1, parts, *(mesh.shape[axis] for axis in others))
    names = (axes[0], *others)
    spec = PartitionSpec(*(names[0] if at == dim else entry for at, entry in enumerate(spec)))
    return tuple(
        NamedSharding(Mesh(devices[:, part], names, axis_types=(AxisType.Auto,) * len(names)), spec)
        for part in range(parts)
    )


def _under(x: jax.Array, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array | None:
    """Return the shards of an array that lie on a part's devices as an array; None where this process has none."""
    if sharding == x.sharding:
        return x
    devices = set(local_devices(sharding.mesh.devices.flat))
    shards = [shard.data for shard in x.addressable_shards if shard.device in devices]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards) if shards else None
