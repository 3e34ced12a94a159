"""Order a causal sequence over devices so that each has the same attention to compute.

A causal sequence split into c consecutive pieces would give the last device c times the work of the first.
So S positions are split into 2c chunks, and device i holds chunks i and 2c-1-i, one from each end (the
zigzag order; Brandon et al. 2023, striped attention; Llama 3, Grattafiori et al. 2024). Of the keys
of device j, device i then needs

    j = i   both diagonal chunks, and its late queries against its early keys     3 tiles
    j < i   both its chunks of queries against the early keys of j                2 tiles
    j > i   its late queries against both chunks of keys of j                     2 tiles

where a tile is one chunk of queries against one of keys, (S/2c)² pairs. Every device computes
3 + 2(c-1) = 2c + 1 tiles of the (2c)² that the sequence has, whatever i is.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from hetjax.models.dims import SEQUENCE, constrain
from hetjax.models.errors import LayoutError
from hetjax.models.parallel.layout_in_force import split_of

# B batch · S sequence · N some of its positions · D width


Tile = tuple[int | Array, int | Array, bool]
"""(half of the queries, half of the keys, whether a query sees no later key)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceOrder:
    """Which position of a sequence each place holds: the natural order with one shard, else the zigzag order.

    Attributes:
        length: positions of the sequence; divisible by 2 * shards where there are several.
        shards: devices that a sequence is split over.
    """

    length: int
    shards: int = 1

    @property
    def positions(self) -> np.ndarray:
        """The position at each place, in the order of the devices: [S] int32."""
        if self.shards == 1:
            return np.arange(self.length, dtype=np.int32)
        chunks = np.arange(self.length, dtype=np.int32).reshape(2 * self.shards, -1)
        return np.stack([chunks[: self.shards], chunks[: self.shards - 1 : -1]], axis=1).reshape(-1)

    def arrange(self, x: Shaped[Array, "B S"] | None) -> Shaped[Array, "B S"] | None:
        """Return ids, labels or weights in their places. For small arrays: each device takes whole sequences for it."""
        if x is None or self.shards == 1:
            return x
        return constrain(jnp.take(constrain(x, "batch", None), self.positions, axis=1), "batch", "seq")

    def restore(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Return hidden states in the natural order of positions; they cross between the devices of a sequence."""
        if self.shards == 1:
            return x
        return constrain(jnp.take(x, np.argsort(self.positions), axis=1), *SEQUENCE, "embed")

    def places(self, positions: Int[Array, "B N"] | None) -> Int[Array, "B N"] | None:
        """Return the place of each position; a position of S or more stays outside of the sequence."""
        if positions is None or self.shards == 1:
            return positions
        places = jnp.asarray(np.argsort(self.positions), positions.dtype)
        return places.at[positions].get(mode="fill", fill_value=self.length)


def sequence_shards() -> int:
    """Return the number of devices that the layout in force splits a sequence over; 1 without."""
    split = split_of("seq")
    return 1 if split is None else split.degree


def check_order(order: SequenceOrder, owner: str) -> None:
    """Raise LayoutError, on behalf of `owner`, where an order is not for the layout in force."""
    if order.shards != sequence_shards():
        raise LayoutError(
            f"{owner}: the order of positions is for {order.shards} shards, but the layout in force has "
            f"{sequence_shards()} of seq; make it with causal_order inside the same layout"
        )


def causal_order(length: int) -> SequenceOrder:
    """Return the order for a causal sequence under the layout in force.

    Raises LayoutError where the sequence does not divide into two chunks a device, or, where it is split further
    between attentions and MLPs, into positions for each.
    """
    split, residual = split_of("seq"), split_of("residual_seq")
    shards, parts = (1 if each is None else each.degree for each in (split, residual))
    chunks = 2 * shards if shards > 1 else 1
    padded = -(-length // math.lcm(chunks, parts)) * math.lcm(chunks, parts)
    if length % chunks:
        axes = "*".join(split.axes)
        raise LayoutError(
            f"a causal sequence needs seq % (2*{axes}) = 0, but {length} % (2*{shards}) = {length % chunks}; "
            f"pad sequences to {padded} positions or change {axes}={shards}"
        )
    if length % parts:
        axes, sizes = "*".join(residual.axes), "*".join(str(residual.mesh.shape[axis]) for axis in residual.axes)
        raise LayoutError(
            f"sequence parallelism needs seq % ({axes}) = 0, but {length} % ({sizes}) = {length % parts}; "
            f"pad sequences to {padded} positions or set sequence_parallel=False"
        )
    return SequenceOrder(length=length, shards=shards)


def tiles_of_round(index: int | Array, number: int, shards: int, *, causal: bool) -> list[Tile]:
    """Return the tiles that device `index` computes in round `number` of the ring.

    In round t it holds the keys of device (index - t) mod shards. Half 0 holds the early chunk of a device
    and half 1 the late one; without `causal` there is one half, the whole. `index` may be traced: the
    number of tiles does not depend on it, so that one program serves all devices.
    """
    if not causal:
        return [(0, 0, False)]
    if number == 0:
        return [(0, 0, True), (1, 1, True), (1, 0, False)]
    # The keys come from an earlier device where index >= number, else from a later one.
    same = 1 - (index >= number) * 1
    return [(same, same, False), (1, 0, False)]
