"""Attention over a sequence that several devices share: keys and values travel, queries stay.

Each device keeps its queries. In the *ring* form (Liu et al. 2023, ring attention) keys and values
move on to the next device once a step, so that after c - 1 moves every device has seen those of all c; each
move is asked for before the tiles of the step are computed, which hides it. In the *all-gather*
form they are gathered first. Both compute the same tiles in the same order.

Received by a device, with n bytes of its own keys and values and n' bytes of them in float32 at least:

    forward    ring: (c-1) n           all-gather: (c-1) n
    backward   ring: (c-1) (n + n')    all-gather: (c-1) n, and a reduce-scatter of (c-1) n'

The backward pass keeps queries, keys, values, the output and a log-sum-exp a query; the scores are
computed again while keys, values and their gradients travel. No weight and no activation moves else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from hetjax.models.dims import Splits
from hetjax.models.errors import LayoutError
from hetjax.models.kernels.online_softmax import Running, finish, nothing_seen, see, tile_gradients
from hetjax.models.parallel.zigzag_order import tiles_of_step

# B batch · S sequence · H heads · G groups of heads that share a key · K head width · R = H/G
# Inside `shard_map` these are the parts of one device: C halves of L rows make its part of S.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring:
    """How attention is shared out; hashable, for it is static.

    Attributes:
        mesh: the devices.
        batch, seq, heads: the axes that split each dim.
        causal: in zigzag order, a query sees the keys of no later row; else it sees all.
        gather: the all-gather form.
    """

    mesh: Mesh
    batch: tuple[str, ...]
    seq: tuple[str, ...]
    heads: tuple[str, ...]
    causal: bool
    gather: bool

    @property
    def shards(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.seq)

    @property
    def of_rows(self) -> PartitionSpec:
        """[B, S, ...]."""
        return PartitionSpec(self.batch or None, self.seq)

    @property
    def of_heads(self) -> PartitionSpec:
        """[B, S, H, ...]; of the log-sum-exp too, whose dims are [B, C per device, G, ...]."""
        return PartitionSpec(self.batch or None, self.seq, self.heads or None)


def attend_across(
    splits: Splits,
    query: Float[Array, "B S H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    segments: Int[Array, "B S"] | None = None,
    *,
    causal: bool,
) -> Float[Array, "B S H K"]:
    """`attend` with the sequence split as `splits` says; causal rows are in zigzag order
    (`hetjax.models.parallel.zigzag_order`).

    With `segments`, a query sees the keys of its own segment only. Raises LayoutError where the key heads do
    not divide as the heads are split.
    """
    ring = Ring(
        mesh=splits.mesh,
        batch=splits.axes_of("batch"),
        seq=splits.axes_of("seq"),
        heads=splits.axes_of("heads"),
        causal=causal,
        gather=splits.context_attention == "all_gather",
    )
    parts, kv_heads = math.prod(ring.mesh.shape[axis] for axis in ring.heads), key.shape[2]
    if kv_heads % parts:
        raise LayoutError(
            f"attention over a split sequence needs kv_heads % {'*'.join(ring.heads)} = 0, but {kv_heads} % {parts} = "
            f"{kv_heads % parts}; change either of the two"
        )
    return _attend(ring, query, key, value, segments)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: Ring, query, key, value, segments):
    return _forward(ring, query, key, value, segments)[0]


def _forward(ring: Ring, query, key, value, segments):
    output, log_sum = jax.shard_map(
        partial(_forward_part, ring),
        mesh=ring.mesh,
        in_specs=(*[ring.of_heads] * 3, ring.of_rows),
        out_specs=(ring.of_heads, ring.of_heads),
        check_vma=False,  # under a `jax.vmap` over another axis of the mesh the check finds that axis, too
    )(query, key, value, segments)
    return output, (query, key, value, segments, output, log_sum)


def _backward(ring: Ring, residuals, gradient):
    gradients = jax.shard_map(
        partial(_backward_part, ring),
        mesh=ring.mesh,
        in_specs=(*[ring.of_heads] * 3, ring.of_rows, *[ring.of_heads] * 3),
        out_specs=(*[ring.of_heads] * 3,),
        check_vma=False,
    )(*residuals, gradient)
    return (*gradients, None)


_attend.defvjp(_forward, _backward)


# ── the part of one device ───────────────────────────────────────────────────────────────────────────


def _forward_part(ring: Ring, query, key, value, segments):
    """(output [B, S, H, K], log-sum-exp [B, C, G, R, L])."""
    query, key, value, segments, index = _local(ring, query, key, value, segments)
    running = jax.vmap(nothing_seen, in_axes=1, out_axes=1)(query)
    for step, held in _visits(ring, index, (key, value, segments)):
        for rows, columns, triangular in tiles_of_step(index, step, ring.shards, causal=ring.causal):
            key_half, value_half, key_segments = _half(held, columns)
            query_half, query_segments = _half((query, segments), rows)
            seen = _seen(query_half.shape[1], triangular, query_segments, key_segments)
            new = see(Running(*_half(running, rows)), query_half, key_half, value_half, seen)
            running = jax.tree.map(lambda all, half, rows=rows: _put(all, half, rows), running, new)
    output, log_sum = jax.vmap(finish, in_axes=1, out_axes=1)(running)
    return _merged(jnp.moveaxis(output, 4, 2)).astype(query.dtype), log_sum


def _backward_part(ring: Ring, query, key, value, segments, output, log_sum, gradient):
    """Gradients of query, key and value."""
    groups, dtypes = key.shape[2], (query.dtype, key.dtype, value.dtype)
    output, gradient = (_halves(ring, _grouped(x, groups)) for x in (output, gradient))
    query, key, value, segments, index = _local(ring, query, key, value, segments)
    wide = log_sum.dtype
    projection = jnp.einsum("bclgrk,bclgrk->bcgrl", gradient, output, preferred_element_type=wide)
    of_query = jnp.zeros(query.shape, wide)
    collected = _Collected(ring, index)
    for step, held in _visits(ring, index, (key, value, segments)):
        of_held = jnp.zeros(key.shape, wide), jnp.zeros(value.shape, wide)
        for rows, columns, triangular in tiles_of_step(index, step, ring.shards, causal=ring.causal):
            key_half, value_half, key_segments = _half(held, columns)
            query_half, query_segments, *of_output = _half((query, segments, gradient, log_sum, projection), rows)
            seen = _seen(query_half.shape[1], triangular, query_segments, key_segments)
            d_query, *d_held = tile_gradients(query_half, key_half, value_half, seen, *of_output)
            of_query = _add(of_query, d_query, rows)
            of_held = tuple(_add(all, half, columns) for all, half in zip(of_held, d_held, strict=True))
        collected.add(step, of_held)
    of_key, of_value = collected.own()
    return tuple(_merged(x).astype(dtype) for x, dtype in zip((of_query, of_key, of_value), dtypes, strict=True))


def _visits(ring: Ring, index: Array, own: Any) -> Iterator[tuple[int, Any]]:
    """(step, keys and what goes with them) of device (index - step) mod c, for each of the c steps."""
    if ring.gather:
        gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, ring.seq), own)
        for step in range(ring.shards):
            yield step, jax.tree.map(lambda x, step=step: _of_device(x, (index - step) % ring.shards), gathered)
        return
    held = own
    for step in range(ring.shards):
        # Asked for before the caller computes with what is held: the two may overlap.
        following = _pass_on(ring, held) if step + 1 < ring.shards else None
        yield step, held
        held = following


class _Collected:
    """Gradients of the keys and values that a device held, brought to the devices whose own they are."""

    def __init__(self, ring: Ring, index: Array):
        self.ring, self.index = ring, index
        self.parts: list[Any] = []
        self.travelling: Any = None

    def add(self, step: int, part: Any) -> None:
        """The gradients for what was held in `step`."""
        if self.ring.gather or step == 0:
            self.parts.append(part)
        else:
            # They travel with the keys: what arrives are the parts of devices that held the same keys before.
            summed = part if self.travelling is None else jax.tree.map(jnp.add, self.travelling, part)
            self.travelling = _pass_on(self.ring, summed)

    def own(self) -> Any:
        """The gradients of this device's own keys and values, after the last step."""
        if not self.ring.gather:
            return jax.tree.map(jnp.add, self.parts[0], self.travelling)
        # Part t belongs to device (index - t) mod c: in reverse, and turned by index + 1, part 0 to device 0.
        by_device = lambda *parts: jnp.roll(jnp.stack(parts[::-1]), self.index + 1, axis=0)  # noqa: E731
        return jax.tree.map(
            lambda *parts: jax.lax.psum_scatter(by_device(*parts), self.ring.seq), self.parts[0], *self.parts[1:]
        )


def _pass_on(ring: Ring, held: Any) -> Any:
    """What the previous device of the ring held."""
    onward = [(device, (device + 1) % ring.shards) for device in range(ring.shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ring.seq, onward), held)


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────


def _local(ring: Ring, query, key, value, segments):
    """(query [B C L G R K], key and value [B C L G K], segments [B C L] or None, this device's place in the ring)."""
    query = _grouped(query, key.shape[2])
    index = jax.lax.axis_index(ring.seq)
    return *(jax.tree.map(partial(_halves, ring), x) for x in (query, key, value, segments)), index


def _grouped(x: Float[Array, "B S H K"], groups: int) -> Float[Array, "B S G R K"]:
    return x.reshape(*x.shape[:2], groups, -1, x.shape[-1])


def _halves(ring: Ring, x: Array) -> Array:
    """[B, S, ...] as [B, C, L, ...]: the early and the late chunk of causal rows, or all rows as one."""
    return x.reshape(x.shape[0], 2 if ring.causal else 1, -1, *x.shape[2:])


def _merged(x: Array) -> Array:
    """[B, C, L, G, (R), K] as [B, S, heads, K]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1, x.shape[-1])


def _half(tree: Any, which: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, which, axis=1, keepdims=False), tree)


def _put(all: Array, half: Array, which: Any) -> Array:
    return jax.lax.dynamic_update_index_in_dim(all, half, which, axis=1)


def _add(all: Array, half: Array, which: Any) -> Array:
    return _put(all, _half(all, which) + half, which)


def _of_device(x: Array, device: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, device, axis=0, keepdims=False)


def _seen(length: int, triangular: bool, query_segments, key_segments) -> Bool[Array, "#B L L"] | None:
    seen = jnp.tri(length, dtype=bool)[None] if triangular else None
    if query_segments is None:
        return seen
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return same if seen is None else same & seen
