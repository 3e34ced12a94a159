"""Run leader and broadcast from device to device, to compare a transport with."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hetjax.boundary.tiling import tiling_of
from hetjax.tools.leader_plan import LeaderMove, leader_moves


class LeaderTransport:
    """Move arrays of one shape from one sharding to another, in one process: see `hetjax.tools.leader_plan`.

    All parts cross at once, and all broadcasts go at once; only device-to-device copies of arrays on one
    device, so nothing passes through the host.
    """

    def __init__(self, source: NamedSharding, destination: NamedSharding, shape: tuple[int, ...]):
        self.destination, self.shape = destination, shape
        sent, received = tiling_of(source, len(shape)), tiling_of(destination, len(shape))
        self._devices = {device.id: device for device in destination.mesh.devices.flat}
        self._groups = tuple(received.holders.values())
        tile_starts = {
            device: tuple(index * size // count for index, size, count in zip(tile, shape, sent.counts, strict=True))
            for device, tile in sent.tile_of.items()
        }
        self._sends: dict[int, list[LeaderMove]] = defaultdict(list)
        self._receives: dict[int, list[LeaderMove]] = defaultdict(list)
        for move in leader_moves(shape, sent, received):
            self._sends[move.source].append(move)
            self._receives[move.destination].append(move)
        self._split = {
            sender: jax.jit(functools.partial(_split, moves=tuple(moves), start=tile_starts[sender]))
            for sender, moves in self._sends.items()
        }
        self._concatenate = {
            receiver: jax.jit(functools.partial(_concatenate, moves=tuple(moves)))
            for receiver, moves in self._receives.items()
        }

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x` in the destination's sharding."""
        tiles = {shard.device.id: shard.data for shard in x.addressable_shards}
        parts: list[jax.Array] = []
        moves: list[LeaderMove] = []
        for sender, split in self._split.items():
            parts += split(tiles[sender])
            moves += self._sends[sender]
        crossed = jax.device_put(parts, [self._devices[move.destination] for move in moves])
        arrived = {(move.source, move.destination): part for move, part in zip(moves, crossed, strict=True)}
        made = {
            receiver: self._concatenate[receiver]([arrived[move.source, receiver] for move in moves])
            for receiver, moves in self._receives.items()
        }
        others = [(device, leader) for leader, *group in self._groups for device in group]
        copies = jax.device_put([made[leader] for _, leader in others], [self._devices[device] for device, _ in others])
        made |= {device: tile for (device, _), tile in zip(others, copies, strict=True)}
        return jax.make_array_from_single_device_arrays(
            self.shape, self.destination, [made[device] for device in self._devices]
        )


def _split(tile: jax.Array, *, moves: Sequence[LeaderMove], start: tuple[int, ...]) -> list[jax.Array]:
    """Return the parts of a leader's tile, which begins at `start` of the whole tensor."""
    return [
        tile[tuple(slice(a - s, b - s) for a, b, s in zip(move.start, move.stop, start, strict=True))] for move in moves
    ]


def _concatenate(parts: Sequence[jax.Array], *, moves: Sequence[LeaderMove]) -> jax.Array:
    """Join a leader's tile from its parts: those with all but one corner in common are joined, dim after dim."""
    corners = {move.start: part for move, part in zip(moves, parts, strict=True)}
    for dim in reversed(range(parts[0].ndim)):
        rows: dict[tuple[int, ...], list[jax.Array]] = defaultdict(list)
        for corner in sorted(corners):
            rows[corner[:dim]].append(corners[corner])
        corners = {corner: jnp.concatenate(row, axis=dim) for corner, row in rows.items()}
    return corners.get((), parts[0])
