"""Run a Mamba-2 recurrence over a sequence that several devices share: summaries of its pieces travel, tokens do not.

In the zigzag order (`hetjax.models.parallel.zigzag_order`) device i of c holds the pieces i and 2c-1-i of the 2c that a
sequence is split into. Two things go from piece to piece, each by one all-gather over the devices of a sequence:

    before the convolution   the last K - 1 inputs of every piece, of which each device takes those ahead of its own two
    before the outputs       how every piece changes a state, the decay over it and what it adds, P·N + 1 numbers a
                             head: each device goes through all 2c of them, for the states that enter its own two

So a device receives 2 (c-1) times these, whatever the length of the pieces; the backward scatters both gradients.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from hetjax.models.errors import LayoutError
from hetjax.models.kernels.causal_conv import Streams, causal_conv, starts_from
from hetjax.models.kernels.mamba_scan import chunk_outputs, chunk_states, pass_states, split_chunks
from hetjax.models.parallel.layout_in_force import Axes, splits_in_force

# B batch · S sequence · H heads · P head width · G groups · R heads of a group · N state · K taps
# On one device: L positions of a piece · T = min(L, K - 1) last ones · C chunks

_BYTES = 4
"""Parts of an id that travel: every float dtype holds the whole numbers 0..255."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaSharding:
    """The static facts of a recurrence over a split sequence; hashable.

    Attributes:
        mesh: the devices.
        batch, seq, heads: the axes that split each dim.
        chunk: positions computed at once.
    """

    mesh: Mesh
    batch: Axes
    seq: Axes
    heads: Axes
    chunk: int

    @property
    def tokens(self) -> PartitionSpec:
        """The partition of arrays [B, S]."""
        return PartitionSpec(self.batch or None, self.seq)

    @property
    def of_heads(self) -> PartitionSpec:
        """The partition of arrays [B, S, H, ...] and [B, S, G, ...]."""
        return PartitionSpec(self.batch or None, self.seq, self.heads or None)

    @property
    def vector(self) -> PartitionSpec:
        """The partition of arrays [H, ...] and [G, ...]."""
        return PartitionSpec(self.heads or None)

    @property
    def kernel(self) -> PartitionSpec:
        """The partition of arrays [K, H, ...] and [K, G, ...]."""
        return PartitionSpec(None, self.heads or None)


def context_parallel_mamba(
    streams: Streams,
    convs: tuple[Streams, Streams],
    dt: Float[Array, "B S H"],
    a: Float[Array, " H"],
    d: Float[Array, " H"],
    segments: Int[Array, "B S"] | None,
    *,
    chunk: int,
) -> Float[Array, "B S H P"]:
    """Return y, the convolution and recurrence of `streams` in the zigzag order of the layout in force.

    `convs` are kernels [K, ...] and biases of the streams. Raises LayoutError where groups do not divide over devices.
    """
    splits = splits_in_force()
    sharding = MambaSharding(
        mesh=splits.mesh,
        # Axes of one device too: gradients are summed over those that no dim rides on.
        batch=(*splits.axes_of("batch"), *(axis for axis, degree in splits.mesh.shape.items() if degree == 1)),
        seq=splits.axes_of("seq"),
        heads=splits.axes_of("heads"),
        chunk=chunk,
    )
    parts, groups = math.prod(sharding.mesh.shape[axis] for axis in sharding.heads), streams.b.shape[2]
    if groups % parts:
        raise LayoutError(
            f"Mamba2 over a split sequence needs groups % {'*'.join(sharding.heads)} = 0, but {groups} % {parts} = "
            f"{groups % parts}; change either of the two"
        )
    return jax.shard_map(
        partial(_part, sharding),
        mesh=sharding.mesh,
        in_specs=(
            sharding.of_heads,
            (sharding.kernel, sharding.vector),
            sharding.of_heads,
            *[sharding.vector] * 2,
            sharding.tokens,
        ),
        out_specs=sharding.of_heads,
        check_vma=False,  # under a `jax.vmap` over another axis of the mesh the check finds that axis, too
    )(streams, convs, dt, a, d, segments)


# ── the part of one device ───────────────────────────────────────────────────────────────────────────


def _part(sharding: MambaSharding, streams: Streams, convs: tuple[Streams, Streams], dt, a, d, segments):
    kernels, biases = convs
    taps, shape = kernels.x.shape[0], streams.x.shape
    streams, dt, segments = jax.tree.map(_pieces, (streams, dt, segments))
    before, ids_before = _inputs_before(sharding, streams, segments, taps - 1)
    streams, dt, before = jax.tree.map(_merged, (streams, dt, before))
    ids = starts = None
    if segments is not None:
        ids = jnp.concatenate([_merged(ids_before), _merged(segments)], axis=1)
        starts = starts_from(ids, taps)
    x, b, c = jax.tree.map(partial(causal_conv, ids=ids), streams, before, kernels, biases)
    chunks = split_chunks(x, dt, a, b, c, starts, sharding.chunk)
    decay, added = chunk_states(chunks)
    state = _states_before(sharding, decay, added)
    y = chunk_outputs(chunks, decay, added, state, d)[0][:, : x.shape[1]]
    return y.reshape(shape)


def _inputs_before(
    sharding: MambaSharding, streams: Streams, segments: Int[Array, "B 2 L"] | None, count: int
) -> tuple[Streams, Int[Array, "B 2 history"] | None]:
    """The `count` inputs of each stream ahead of this device's two pieces, and their ids; zeros ahead of the first."""
    tails = jax.tree.map(lambda inputs: inputs[:, :, -count:], streams)
    shapes = [tail.shape[3:] for tail in tails]
    packed = [tail.reshape(*tail.shape[:3], -1) for tail in tails]
    if segments is not None:
        packed.append(_as_bytes(segments[:, :, -count:], streams.x.dtype))
    sizes = [tail.shape[-1] for tail in packed]
    pieces = _gathered(sharding, jnp.concatenate(packed, axis=-1))
    # Pieces of fewer than `count` positions come as a whole: what is ahead of a piece is then in several of them.
    inputs = jnp.moveaxis(pieces, 0, 1)
    inputs = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    inputs = jnp.pad(inputs, ((0, 0), (count, 0), (0, 0)))
    starts = (piece * pieces.shape[2] for piece in _own(sharding, pieces.shape[0]))
    ahead = jnp.stack([jax.lax.dynamic_slice_in_dim(inputs, start, count, axis=1) for start in starts], axis=1)
    *parts, rest = jnp.split(ahead, [sum(sizes[: i + 1]) for i in range(len(shapes))], axis=-1)
    before = Streams(*(part.reshape(*part.shape[:3], *shape) for part, shape in zip(parts, shapes, strict=True)))
    return before, None if segments is None else _as_ids(rest)


def _states_before(
    sharding: MambaSharding, decay: Float[Array, "pieces C G R"], added: Float[Array, "pieces C G R P N"]
) -> Float[Array, "pieces G R P N"]:
    """The states that enter this device's two pieces of C chunks."""
    zeros = jnp.zeros_like(added[:, 0])
    over_piece, added_by_piece = decay.prod(axis=1), pass_states(decay, added, zeros)[1]
    packed = jnp.concatenate([added_by_piece.reshape(*over_piece.shape, -1), over_piece[..., None]], axis=-1)
    pieces = _gathered(sharding, packed.reshape(-1, 2, *packed.shape[1:]))

    def piece(state, summary):
        return summary[..., -1:] * state + summary[..., :-1], state

    _, before = jax.lax.scan(piece, jnp.zeros_like(pieces[0, ..., :-1]), pieces)
    own = jnp.stack([before[number] for number in _own(sharding, pieces.shape[0])], axis=1)
    return own.reshape(zeros.shape)


def _gathered(sharding: MambaSharding, own: Shaped[Array, "B 2 ..."]) -> Shaped[Array, "pieces B ..."]:
    """What every device has of its two pieces, in the order of the sequence."""
    of_devices = jax.lax.all_gather(own, sharding.seq)
    return jnp.concatenate([of_devices[:, :, 0], of_devices[::-1, :, 1]])


def _own(sharding: MambaSharding, pieces: int) -> tuple[Array, Array]:
    """The numbers of this device's pieces."""
    index = jax.lax.axis_index(sharding.seq)
    return index, pieces - 1 - index


def _pieces(x: Shaped[Array, "B S ..."]) -> Shaped[Array, "B 2 L ..."]:
    return x.reshape(x.shape[0], 2, -1, *x.shape[2:])


def _merged(pieces: Shaped[Array, "B 2 L ..."]) -> Shaped[Array, "pieces L ..."]:
    return pieces.reshape(-1, *pieces.shape[2:])


def _as_bytes(ids: Int[Array, "B 2 T"], dtype: jax.typing.DTypeLike) -> Float[Array, "B 2 T 4"]:
    """Ids as floats, so that they travel with the inputs: two collectives that do not wait for each other may meet in
    unlike order on two devices."""
    return jnp.stack([(ids >> 8 * i) & 255 for i in range(_BYTES)], axis=-1).astype(dtype)


def _as_ids(parts: Float[Array, "B 2 T 4"]) -> Int[Array, "B 2 T"]:
    return sum(parts[..., i].astype(jnp.int32) << 8 * i for i in range(_BYTES))
