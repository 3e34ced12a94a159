"""Bring keys and values to every device of a sequence, and their gradients back: round by round, or all at once.

Received by a device, with n bytes of its own keys and values and n' bytes of them in float32 at least:

    forward    ring: (c-1) n           all-gather: (c-1) n
    backward   ring: (c-1) (n + n')    all-gather: (c-1) n, and a reduce-scatter of (c-1) n'
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, PyTree

from hetjax.models.kernels.flash_attention import TileKernel
from hetjax.models.parallel.layout_in_force import Axes

Arrays = TypeVar("Arrays", bound=PyTree[Array])
"""A tree of one device's arrays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RingSharding:
    """The static facts of attention over a split sequence; hashable.

    Attributes:
        mesh: the devices.
        batch, seq, heads: the axes that split each dim.
        causal: in zigzag order, a query sees the keys of no later position; else it sees all.
        gather: whether keys and values are gathered first, instead of passed on round by round.
        kernel: what computes a tile.
    """

    mesh: Mesh
    batch: Axes
    seq: Axes
    heads: Axes
    causal: bool
    gather: bool
    kernel: TileKernel

    @property
    def shards(self) -> int:
        """Number of devices that share a sequence, c."""
        return math.prod(self.mesh.shape[axis] for axis in self.seq)

    @property
    def of_tokens(self) -> PartitionSpec:
        """The partition of arrays [B, S, ...]."""
        return PartitionSpec(self.batch or None, self.seq)

    @property
    def of_heads(self) -> PartitionSpec:
        """The partition of [B, S, H, ...]; of the log-sum-exp too, whose dims are [B, C per device, H, L]."""
        return PartitionSpec(self.batch or None, self.seq, self.heads or None)


def rounds(sharding: RingSharding, index: Int[Array, ""], own: Arrays) -> Iterator[tuple[int, Arrays]]:
    """Yield (round, what device (index - round) mod c has as its `own`), for each of the c rounds."""
    if sharding.gather:
        gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, sharding.seq), own)
        for number in range(sharding.shards):
            device = (index - number) % sharding.shards
            yield number, jax.tree.map(lambda x, device=device: _of_device(x, device), gathered)
        return
    held = own
    for number in range(sharding.shards):
        # Asked for before the caller computes with what it has: the two may overlap.
        following = _pass_on(sharding, held) if number + 1 < sharding.shards else None
        yield number, held
        held = following


class CollectedGradients:
    """Gradients of the keys and values that a device held, brought to the devices that own them."""

    def __init__(self, sharding: RingSharding, index: Int[Array, ""]):
        self.sharding, self.index = sharding, index
        self.parts: list[PyTree[Array]] = []
        self.travelling: PyTree[Array] | None = None

    def add(self, number: int, part: PyTree[Array]) -> None:
        """Add the gradients for what was held in round `number`."""
        if self.sharding.gather or number == 0:
            self.parts.append(part)
        else:
            # They travel with the keys: what arrives are the parts of devices that held the same keys before.
            summed = part if self.travelling is None else jax.tree.map(jnp.add, self.travelling, part)
            self.travelling = _pass_on(self.sharding, summed)

    def own(self) -> PyTree[Array]:
        """Return the gradients of this device's own keys and values, after the last round."""
        if not self.sharding.gather:
            return jax.tree.map(jnp.add, self.parts[0], self.travelling)
        # Part t belongs to device (index - t) mod c: in reverse, and turned by index + 1, part 0 to device 0.
        by_device = lambda *parts: jnp.roll(jnp.stack(parts[::-1]), self.index + 1, axis=0)  # noqa: E731
        return jax.tree.map(
            lambda *parts: jax.lax.psum_scatter(by_device(*parts), self.sharding.seq), self.parts[0], *self.parts[1:]
        )


def _pass_on(sharding: RingSharding, held: Arrays) -> Arrays:
    """What the previous device of the ring held."""
    onward = [(device, (device + 1) % sharding.shards) for device in range(sharding.shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, sharding.seq, onward), held)


def _of_device(x: Array, device: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_index_in_dim(x, device, axis=0, keepdims=False)
