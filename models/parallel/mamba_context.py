"""A Mamba-2 recurrence over a sequence that several devices share: summaries of its parts travel, rows do not.

In the zigzag order (`hetjax.models.parallel.zigzag_order`) device i of c holds the runs i and 2c-1-i of the 2c that a
sequence is cut into. Two things go from run to run, and each takes one all-gather over the devices of a sequence:

    before the convolution   the last K - 1 inputs of every run, of which each device takes those ahead of its own two
    before the outputs       how every run changes a state, the decay over it and what it adds, P·N + 1 numbers a head:
                             each device goes through all 2c of them, for the states that enter its own two

So a device receives 2 (c-1) times these, whatever the length of the runs; the backward scatters the gradients of both.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from hetjax.models.dims import Splits
from hetjax.models.errors import LayoutError
from hetjax.models.kernels.causal_conv import Streams, causal_conv, starts_from
from hetjax.models.kernels.mamba_scan import chunk_states, cut, outputs, pass_on

# B batch · S sequence · H heads · P head width · G groups · R heads of a group · N state · K taps
# On one device: L rows of a run · T = min(L, K - 1) last ones · C chunks

_BYTES = 4
"""Parts of an id that travel: every float dtype holds the whole numbers 0..255."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
    """How a recurrence is shared out; hashable, for it is static.

    Attributes:
        mesh: the devices.
        batch, seq, heads: the axes that split each dim.
        chunk: rows computed at once.
    """

    mesh: Mesh
    batch: tuple[str, ...]
    seq: tuple[str, ...]
    heads: tuple[str, ...]
    chunk: int

    @property
    def rows(self) -> PartitionSpec:
        """[B, S]."""
        return PartitionSpec(self.batch or None, self.seq)

    @property
    def of_heads(self) -> PartitionSpec:
        """[B, S, H, ...] and [B, S, G, ...]."""
        return PartitionSpec(self.batch or None, self.seq, self.heads or None)

    @property
    def vector(self) -> PartitionSpec:
        """[H, ...] and [G, ...]."""
        return PartitionSpec(self.heads or None)

    @property
    def kernel(self) -> PartitionSpec:
        """[K, H, ...] and [K, G, ...]."""
        return PartitionSpec(None, self.heads or None)


def mix_across(
    splits: Splits,
    streams: Streams,
    convs: tuple[Streams, Streams],
    dt: Float[Array, "B S H"],
    a: Float[Array, " H"],
    d: Float[Array, " H"],
    segments: Int[Array, "B S"] | None,
    *,
    chunk: int,
) -> Float[Array, "B S H P"]:
    """Convolution and recurrence of `streams`, whose rows are in the zigzag order of the layout in force.

    `convs` are kernels [K, ...] and biases of the streams. Raises LayoutError where groups do not divide over devices.
    """
    shares = Shares(
        mesh=splits.mesh,
        # Axes of one device too: gradients are summed over those that no dim rides on.
        batch=(*splits.axes_of("batch"), *(axis for axis, degree in splits.mesh.shape.items() if degree == 1)),
        seq=splits.axes_of("seq"),
        heads=splits.axes_of("heads"),
        chunk=chunk,
    )
    parts, groups = math.prod(shares.mesh.shape[axis] for axis in shares.heads), streams.b.shape[2]
    if groups % parts:
        raise LayoutError(
            f"Mamba2 over a split sequence needs groups % {'*'.join(shares.heads)} = 0, but {groups} % {parts} = "
            f"{groups % parts}; change either of the two"
        )
    return jax.shard_map(
        partial(_part, shares),
        mesh=shares.mesh,
        in_specs=(shares.of_heads, (shares.kernel, shares.vector), shares.of_heads, *[shares.vector] * 2, shares.rows),
        out_specs=shares.of_heads,
        check_vma=False,  # under a `jax.vmap` over another axis of the mesh the check finds that axis, too
    )(streams, convs, dt, a, d, segments)


# ── the part of one device ───────────────────────────────────────────────────────────────────────────


def _part(shares: Shares, streams: Streams, convs: tuple[Streams, Streams], dt, a, d, segments):
    kernels, biases = convs
    taps, shape = kernels.x.shape[0], streams.x.shape
    streams, dt, segments = jax.tree.map(_runs, (streams, dt, segments))
    before, ids_before = _rows_before(shares, streams, segments, taps - 1)
    streams, dt, before = jax.tree.map(_merged, (streams, dt, before))
    ids = starts = None
    if segments is not None:
        ids = jnp.concatenate([_merged(ids_before), _merged(segments)], axis=1)
        starts = starts_from(ids, taps)
    x, b, c = jax.tree.map(partial(causal_conv, ids=ids), streams, before, kernels, biases)
    chunks = cut(x, dt, a, b, c, starts, shares.chunk)
    decay, added = chunk_states(chunks)
    state = _states_before(shares, decay, added)
    y = outputs(chunks, decay, added, state, d)[0][:, : x.shape[1]]
    return y.reshape(shape)


def _rows_before(
    shares: Shares, streams: Streams, segments: Int[Array, "B 2 L"] | None, count: int
) -> tuple[Streams, Int[Array, "B 2 history"] | None]:
    """The `count` rows of each stream ahead of this device's two runs, and their ids; zeros ahead of the first run."""
    tails = jax.tree.map(lambda rows: rows[:, :, -count:], streams)
    shapes = [rows.shape[3:] for rows in tails]
    packed = [rows.reshape(*rows.shape[:3], -1) for rows in tails]
    if segments is not None:
        packed.append(_as_bytes(segments[:, :, -count:], streams.x.dtype))
    sizes = [rows.shape[-1] for rows in packed]
    runs = _gathered(shares, jnp.concatenate(packed, axis=-1))
    # Runs of fewer than `count` rows are here as a whole: what is ahead of a run is then in several of them.
    rows = jnp.moveaxis(runs, 0, 1)
    rows = rows.reshape(rows.shape[0], -1, rows.shape[-1])
    rows = jnp.pad(rows, ((0, 0), (count, 0), (0, 0)))
    starts = (run * runs.shape[2] for run in _own(shares, runs.shape[0]))
    ahead = jnp.stack([jax.lax.dynamic_slice_in_dim(rows, start, count, axis=1) for start in starts], axis=1)
    *parts, rest = jnp.split(ahead, [sum(sizes[: i + 1]) for i in range(len(shapes))], axis=-1)
    before = Streams(*(part.reshape(*part.shape[:3], *shape) for part, shape in zip(parts, shapes, strict=True)))
    return before, None if segments is None else _as_ids(rest)


def _states_before(
    shares: Shares, decay: Float[Array, "runs C G R"], added: Float[Array, "runs C G R P N"]
) -> Float[Array, "runs G R P N"]:
    """The states that enter this device's two runs of C chunks."""
    zeros = jnp.zeros_like(added[:, 0])
    over_run, added_by_run = decay.prod(axis=1), pass_on(decay, added, zeros)[1]
    packed = jnp.concatenate([added_by_run.reshape(*over_run.shape, -1), over_run[..., None]], axis=-1)
    runs = _gathered(shares, packed.reshape(-1, 2, *packed.shape[1:]))

    def run(state, summary):
        return summary[..., -1:] * state + summary[..., :-1], state

    _, before = jax.lax.scan(run, jnp.zeros_like(runs[0, ..., :-1]), runs)
    own = jnp.stack([before[run] for run in _own(shares, runs.shape[0])], axis=1)
    return own.reshape(zeros.shape)


def _gathered(shares: Shares, own: Shaped[Array, "B 2 ..."]) -> Shaped[Array, "runs B ..."]:
    """What every device has of its two runs, in the order of the sequence."""
    of_devices = jax.lax.all_gather(own, shares.seq)
    return jnp.concatenate([of_devices[:, :, 0], of_devices[::-1, :, 1]])


def _own(shares: Shares, runs: int) -> tuple[Array, Array]:
    """The numbers of this device's runs."""
    index = jax.lax.axis_index(shares.seq)
    return index, runs - 1 - index


def _runs(rows: Shaped[Array, "B S ..."]) -> Shaped[Array, "B 2 L ..."]:
    return rows.reshape(rows.shape[0], 2, -1, *rows.shape[2:])


def _merged(runs: Shaped[Array, "B 2 L ..."]) -> Shaped[Array, "runs L ..."]:
    return runs.reshape(-1, *runs.shape[2:])


def _as_bytes(ids: Int[Array, "B 2 T"], dtype: jax.typing.DTypeLike) -> Float[Array, "B 2 T 4"]:
    """Ids as floats, so that they travel with the rows: two collectives that do not wait for each other may meet in
    unlike order on two devices."""
    return jnp.stack([(ids >> 8 * i) & 255 for i in range(_BYTES)], axis=-1).astype(dtype)


def _as_ids(parts: Float[Array, "B 2 T 4"]) -> Int[Array, "B 2 T"]:
    return sum(parts[..., i].astype(jnp.int32) << 8 * i for i in range(_BYTES))
