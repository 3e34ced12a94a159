"""Compute the cross entropy of tokens from hidden states, a chunk of tokens at a time, and its gradients.

The logits of all tokens are larger than anything else that a language model makes: 8,192 tokens by 131,072 ids are
2 GiB in bfloat16 and 4 GiB in float32. So they are made of as many tokens as `MOST_LOGITS` allows, reduced to three
numbers a token, and dropped; the backward makes the logits of a chunk again, at the price of a product. (Gradients
made in the forward, as by Hsu et al. 2024, "Liger Kernel", would save that product, and hold a gradient of the head
for every microbatch in flight.) Where all tokens are one chunk, its logits are kept and nothing is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.remat import inseparable

# T tokens, in one dim or more · N tokens of a chunk · D width · V ids of this device's part of the vocabulary

MOST_LOGITS = 2**27
"""Most logits of a chunk: 256 MiB in bfloat16. At 131,072 ids that is 1,024 tokens, enough for products to be bound by
arithmetic and not by reading the head."""


class TokenStatistics(NamedTuple):
    """What a loss takes of the logits of each token, in float32 at least.

    Attributes:
        largest: the largest logit.
        exponentials: the sum of exp(logit - largest).
        chosen: the label's logit; 0 where the label is no id of this part.
    """

    largest: Float[Array, "*T"]
    exponentials: Float[Array, "*T"]
    chosen: Float[Array, "*T"]


def chunks_of(tokens: int, vocabulary: int) -> int:
    """Return into how many chunks so many tokens are cut."""
    most = max(1, MOST_LOGITS // vocabulary)
    return -(-tokens // most)


def token_statistics(
    x: Float[Array, "*T D"], kernel: Float[Array, "_ _"], labels: Int[Array, "*T"], *, vocab_dim: int, chunks: int
) -> tuple[TokenStatistics, Float[Array, "*T V"] | None]:
    """Return (statistics of x times the kernel, the logits in the dtype of x if they are one chunk).

    `vocab_dim` is the dim of the kernel that is V wide; the other is D.
    """
    if chunks == 1:
        logits = _logits(x, kernel, vocab_dim)
        return _statistics(logits, labels), logits

    def of_chunk(_: None, chunk: tuple[Array, Array]) -> tuple[None, TokenStatistics]:
        rows, labels = chunk
        return None, _statistics(_logits(rows, kernel, vocab_dim), labels)

    _, statistics = jax.lax.scan(of_chunk, None, (_cut(x, labels.ndim, chunks), _cut(labels, labels.ndim, chunks)))
    return jax.tree.map(lambda each: _joined(each, labels.shape), statistics), None


def token_gradients(
    x: Float[Array, "*T D"],
    kernel: Float[Array, "_ _"],
    labels: Int[Array, "*T"],
    log_sums: Float[Array, "*T"],
    gradients: Float[Array, "*T"],
    logits: Float[Array, "*T V"] | None,
    *,
    vocab_dim: int,
    chunks: int,
    trains: bool = True,
) -> tuple[Float[Array, "*T D"], Float[Array, "_ _"] | None]:
    """Return the gradients of x and of the kernel, if that `trains`: this device's part of either sum.

    `log_sums` are logarithms of the sums of all exponentials, `gradients` those of the losses, and `logits` what
    `token_statistics` returned.
    """
    if chunks == 1:
        of_logits = _of_logits(logits, labels, log_sums, gradients)
        return _of_x(of_logits, kernel, vocab_dim), _of_kernel(x, of_logits, vocab_dim) if trains else None
    cut: Callable[[Array], Array] = partial(_cut, leading=labels.ndim, chunks=chunks)
    run = _gradients_in_chunks(vocab_dim, trains)
    of_x, of_kernel = run(cut(x), kernel, cut(labels), cut(log_sums), cut(gradients))
    return _joined(of_x, labels.shape), of_kernel


def _gradients_in_chunks(vocab_dim: int, trains: bool) -> Callable[..., tuple[Array, Array | None]]:
    """The gradients of chunks [C, N, ...]: of x by chunk, and of the kernel in all, if that trains."""

    # Split, the products with x would need the gradients of all logits at once.
    @inseparable
    def run(x: Array, kernel: Array, labels: Array, log_sums: Array, gradients: Array) -> tuple[Array, Array | None]:
        def of_chunk(total: Array | None, chunk: tuple[Array, ...]) -> tuple[Array | None, Array]:
            rows, labels, log_sums, gradients = chunk
            of_logits = _of_logits(_logits(rows, kernel, vocab_dim), labels, log_sums, gradients)
            if trains:
                total = total + _of_kernel(rows, of_logits, vocab_dim, total.dtype)
            return total, _of_x(of_logits, kernel, vocab_dim)

        zeros = jnp.zeros(kernel.shape, _wide(kernel)) if trains else None
        total, of_x = jax.lax.scan(of_chunk, zeros, (x, labels, log_sums, gradients))
        return of_x, total.astype(kernel.dtype) if trains else None

    return run


def _logits(x: Array, kernel: Array, vocab_dim: int) -> Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (1 - vocab_dim,)), ((), ())))


def _statistics(logits: Array, labels: Array) -> TokenStatistics:
    wide = logits.astype(_wide(logits))
    largest = wide.max(axis=-1)
    exponentials = jnp.exp(wide - largest[..., None]).sum(axis=-1)
    return TokenStatistics(largest, exponentials, jnp.where(_is_label(logits, labels), wide, 0).sum(axis=-1))


def _of_logits(logits: Array, labels: Array, log_sums: Array, gradients: Array) -> Array:
    """The gradient of the logits: that of the loss times (softmax - one at the label)."""
    softmax = jnp.exp(logits.astype(log_sums.dtype) - log_sums[..., None])
    return (gradients[..., None] * (softmax - _is_label(logits, labels))).astype(logits.dtype)


def _of_x(of_logits: Array, kernel: Array, vocab_dim: int) -> Array:
    return jax.lax.dot_general(of_logits, kernel, (((of_logits.ndim - 1,), (vocab_dim,)), ((), ())))


def _of_kernel(x: Array, of_logits: Array, vocab_dim: int, dtype: jax.typing.DTypeLike | None = None) -> Array:
    tokens = tuple(range(x.ndim - 1))
    left, right = (of_logits, x) if vocab_dim == 0 else (x, of_logits)
    return jax.lax.dot_general(left, right, ((tokens, tokens), ((), ())), preferred_element_type=dtype)


def _is_label(logits: Array, labels: Array) -> Array:
    """Where a logit is the label's: an iota is compared, so that a label outside of the part is nowhere."""
    return jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _cut(x: Array, leading: int, chunks: int) -> Array:
    """[*T, ...] -> [chunks, N, ...]; chunks are filled up with zeros, whose gradients are zero."""
    flat = x.reshape(-1, *x.shape[leading:])
    size = -(-len(flat) // chunks)
    padded = jnp.pad(flat, [(0, chunks * size - len(flat)), *[(0, 0)] * (flat.ndim - 1)])
    return padded.reshape(chunks, size, *flat.shape[1:])


def _joined(x: Array, tokens: tuple[int, ...]) -> Array:
    """[chunks, N, ...] -> [*T, ...], without what chunks were filled up with."""
    flat = x.reshape(-1, *x.shape[2:])
    return flat[: math.prod(tokens)].reshape(*tokens, *flat.shape[1:])
