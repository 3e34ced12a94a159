"""Run the recurrence of Mamba-2 by chunks: matrix products inside of a chunk, one state from chunk to chunk.

With a_t = dt_t A and s_t the sum of a over the positions of t's chunk up to t, a chunk of Q positions that the state H
enters has (Dao and Gu 2024, section 6)

    y_i = sum over j <= i of exp(s_i - s_j) (C_i · B_j) dt_j x_j  +  exp(s_i) H C_i  +  D x_i
    H'  = exp(s_Q) H + sum over j of exp(s_Q - s_j) dt_j x_j ⊗ B_j

Every exponent is a sum of a, which is never positive. Where a document starts in the chunk, s starts from 0 too, and
terms that would carry something over its border are left out. Products take operands in the dtype of x and add up in
float32 at least, in which decays, time steps and states are kept all through.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# B batch · S sequence · H heads · G groups · R heads of a group · P head width · N state
# C chunks · Q positions of a chunk


class Chunks(NamedTuple):
    """A sequence split into chunks; what fills up the last one has a time step of 0, which leaves the state alone.

    Attributes:
        x, dt, b, c: as `ssd_scan` takes them.
        sums: s above.
        document: how many documents have started in the chunk, up to each position; None where all is one document.
    """

    x: Float[Array, "B C Q G R P"]
    dt: Float[Array, "B C Q G R"]
    sums: Float[Array, "B C Q G R"]
    b: Float[Array, "B C Q G N"]
    c: Float[Array, "B C Q G N"]
    document: Int[Array, "B C Q"] | None


def ssd_scan(
    x: Float[Array, "B S H P"],
    dt: Float[Array, "B S H"],
    a: Float[Array, " H"],
    b: Float[Array, "B S G N"],
    c: Float[Array, "B S G N"],
    d: Float[Array, " H"],
    *,
    chunk: int,
    starts: Bool[Array, "B S"] | None = None,
    state: Float[Array, "B H P N"] | None = None,
) -> tuple[Float[Array, "B S H P"], Float[Array, "B H P N"]]:
    """Return (y in the dtype of x, the state after the last position) from `state`, or zeros, before the first.

    Head h reads group h // (H / G). `dt`, `a` < 0 and `state` are float32 at least. No position sees what is ahead of
    one that `starts` a document. The backward keeps the arguments and one state a chunk, and computes the products
    again.
    """
    chunks = split_chunks(x, dt, a, b, c, starts, chunk)
    decay, added = chunk_states(chunks)
    if state is None:
        state = jnp.zeros((x.shape[0], *x.shape[2:], b.shape[-1]), dt.dtype)
    y, last = chunk_outputs(chunks, decay, added, state.reshape(added[:, 0].shape), d)
    return y[:, : x.shape[1]], last.reshape(state.shape)


def ssd_step(
    x: Float[Array, "B H P"],
    dt: Float[Array, "B H"],
    a: Float[Array, " H"],
    b: Float[Array, "B G N"],
    c: Float[Array, "B G N"],
    d: Float[Array, " H"],
    state: Float[Array, "B H P N"],
) -> tuple[Float[Array, "B H P"], Float[Array, "B H P N"]]:
    """Return (y in the dtype of x, the next state) of one position."""
    heads, groups = x.shape[1], b.shape[1]
    wide = x.astype(dt.dtype)
    grouped = lambda x: x.reshape(x.shape[0], groups, heads // groups, *x.shape[2:])  # noqa: E731
    added = jnp.einsum("bgrp,bgn->bgrpn", grouped(wide * dt[..., None]), b.astype(dt.dtype)).reshape(state.shape)
    state = jnp.exp(dt * a)[..., None, None] * state + added
    y = jnp.einsum("bgrpn,bgn->bgrp", grouped(state), c.astype(dt.dtype)).reshape(x.shape)
    return (y + d.astype(dt.dtype)[:, None] * wide).astype(x.dtype), state


# ── the three passes, which a sequence over several devices takes one by one ─────────────────────────


def split_chunks(
    x: Float[Array, "B S H P"],
    dt: Float[Array, "B S H"],
    a: Float[Array, " H"],
    b: Float[Array, "B S G N"],
    c: Float[Array, "B S G N"],
    starts: Bool[Array, "B S"] | None,
    chunk: int,
) -> Chunks:
    """Return the sequence in chunks of at most `chunk` positions."""
    length, groups = x.shape[1], b.shape[2]
    size = min(chunk, length)

    def split(array: Shaped[Array, "B S ..."], *dims: int) -> Shaped[Array, "B C Q ..."]:
        array = jnp.pad(array, ((0, 0), (0, -length % size), *((0, 0),) * (array.ndim - 2)))
        return array.reshape(array.shape[0], -1, size, *(dims or array.shape[2:]))

    heads = (groups, x.shape[2] // groups)
    document = None if starts is None else jnp.cumsum(split(starts), axis=2, dtype=jnp.int32)
    dt = split(dt, *heads)
    logs = dt * a.reshape(heads)
    sums = jnp.cumsum(logs, axis=2) if document is None else _sums_in_documents(logs, document)
    return Chunks(split(x, *heads, x.shape[3]), dt, sums, split(b), split(c), document)


@partial(jax.checkpoint, prevent_cse=False)
def _sums_in_documents(logs: Float[Array, "B C Q G R"], document: Int[Array, "B C Q"]) -> Float[Array, "B C Q G R"]:
    """Sums up to each position, from its document's first in the chunk on: what is ahead of it leaves no rounding.

    A product with a matrix of zeros and ones is one operation, where a scan over positions is dozens, in every layer.
    """
    seen = (document[..., :, None] == document[..., None, :]) & jnp.tri(logs.shape[2], dtype=bool)
    return jnp.einsum("bcij,bcjgr->bcigr", seen.astype(logs.dtype), logs, precision=jax.lax.Precision.HIGHEST)


@partial(jax.checkpoint, prevent_cse=False)
def chunk_states(chunks: Chunks) -> tuple[Float[Array, "B C G R"], Float[Array, "B C G R P N"]]:
    """Return (exp(s_Q), what the chunk adds to the state): how each chunk changes a state that enters it."""
    wide, sums, document = chunks.sums.dtype, chunks.sums, chunks.document
    decay, exponents = jnp.exp(sums[:, :, -1]), sums[:, :, -1:] - sums
    if document is not None:
        decay = jnp.where((document[:, :, -1] == 0)[..., None, None], decay, 0)
        # Ahead of the exponential: from other documents it may be anything.
        exponents = jnp.where((document == document[:, :, -1:])[..., None, None], exponents, -jnp.inf)
    weights = jnp.exp(exponents) * chunks.dt
    weighted = (chunks.x * weights[..., None]).astype(chunks.x.dtype)
    return decay, jnp.einsum("bcqgrp,bcqgn->bcgrpn", weighted, chunks.b, preferred_element_type=wide)


def pass_states(
    decay: Float[Array, "B C G R"], added: Float[Array, "B C G R P N"], state: Float[Array, "B G R P N"]
) -> tuple[Float[Array, "B C G R P N"], Float[Array, "B G R P N"]]:
    """Return (the state that enters each chunk, the one after the last)."""

    def chunk(state, change):
        decay, added = change
        return decay[..., None, None] * state + added, state

    changes = jnp.moveaxis(decay, 1, 0), jnp.moveaxis(added, 1, 0)
    last, before = jax.lax.scan(chunk, state, changes)
    return jnp.moveaxis(before, 0, 1), last


@partial(jax.checkpoint, prevent_cse=False)
def chunk_outputs(
    chunks: Chunks,
    decay: Float[Array, "B C G R"],
    added: Float[Array, "B C G R P N"],
    state: Float[Array, "B G R P N"],
    d: Float[Array, " H"],
) -> tuple[Float[Array, "B CQ H P"], Float[Array, "B G R P N"]]:
    """Return (y, filled up to whole chunks; the state after the last position) of chunks that `state` enters."""
    x, dt, sums, b, c, document = chunks
    before, last = pass_states(decay, added, state)
    wide, size, heads = sums.dtype, x.shape[2], x.shape[3:5]
    seen, into = jnp.tri(size, dtype=bool), jnp.exp(sums)
    if document is not None:
        same = document[..., :, None] == document[..., None, :]
        seen = (seen & same)[:, :, None, None]
        into = jnp.where((document == 0)[..., None, None], into, 0)
    by_head, steps = (jnp.moveaxis(each, 2, -1) for each in (sums, dt))
    # Masked ahead of the exponential: of an unseen pair the exponent is positive and may be anything.
    decays = jnp.exp(jnp.where(seen, by_head[..., :, None] - by_head[..., None, :], -jnp.inf))
    scores = jnp.einsum("bcign,bcjgn->bcgij", c, b, preferred_element_type=wide)
    weights = (scores[:, :, :, None] * decays * steps[..., None, :]).astype(x.dtype)
    y = jnp.einsum("bcgrij,bcjgrp->bcigrp", weights, x, preferred_element_type=wide)
    entered = jnp.einsum("bcign,bcgrpn->bcigrp", c, before.astype(c.dtype), preferred_element_type=wide)
    y = y + into[..., None] * entered + d.astype(wide).reshape(*heads, 1) * x
    return y.astype(x.dtype).reshape(x.shape[0], -1, heads[0] * heads[1], x.shape[-1]), last
