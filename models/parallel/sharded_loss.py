"""The cross entropy of each token by a head whose vocabulary and width may be split, in chunks of tokens.

With the axes that the layout in force gives the dims, a device

    forward    gathers x over the axes that split positions further than `seq`, and the head over those that only split
               weights; reduces the logits of its ids, chunk by chunk, to three numbers a token; and completes these
               over the axes of the vocabulary, once for all chunks: a maximum, and two sums that travel together
    backward   gathers both again; makes the logits of a chunk, their gradients and the products with them; sums and
               scatters the gradient of x as x is split, and that of the head as the optimizer holds it

No device has all logits of its tokens: see `hetjax.models.kernels.token_losses`.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, SEQUENCE
from hetjax.models.kernels.token_losses import TokenStatistics, chunks_of, token_gradients, token_statistics
from hetjax.models.parallel.dim_axes import DimAxes, gradient_axes, unique_axes, weight_axes
from hetjax.models.parallel.layout_in_force import Axes, Splits, splits_in_force

# B batch · S sequence · D width · V vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSharding:
    """The static facts of a loss under a layout; hashable.

    Attributes:
        mesh: the devices; None for one device, or where the compiler is to choose the communication.
        x: axes of the hidden states [B, S, D].
        kernel, gradient: those of the head as programs hold it, and of its gradient as the optimizer does.
        tokens: axes that split batch and sequence while x is multiplied.
        vocab: axes that split the vocabulary.
        vocab_dim: the dim of the head that is the vocabulary.
        chunks: number of chunks of the tokens of a device.
    """

    mesh: Mesh | None = None
    x: DimAxes | None = None
    kernel: DimAxes | None = None
    gradient: DimAxes | None = None
    tokens: tuple[Axes, Axes] = ((), ())
    vocab: Axes = ()
    vocab_dim: int
    chunks: int

    @property
    def tokens_over(self) -> Axes:
        """All axes that split tokens."""
        return unique_axes(self.tokens)

    @property
    def of_tokens(self) -> PartitionSpec:
        """The partition of arrays [B, S]."""
        return PartitionSpec(*(axes or None for axes in self.tokens))

    @property
    def of_logits(self) -> PartitionSpec | None:
        """The partition of logits [B, S, V], where they are kept."""
        return PartitionSpec(*self.of_tokens, self.vocab or None) if self.chunks == 1 else None


def token_losses(
    x: Float[Array, "B S D"], kernel: Float[Array, "_ _"], labels: Int[Array, "B S"], *, vocab_dim: int
) -> Float[Array, "B S"]:
    """Return logsumexp(logits) - logits[label] of each token, in nats and in float32 at least.

    The logits are x times the kernel, whose dim `vocab_dim` is the vocabulary, rounded to the dtype of both.
    `x` is split as the residual stream, `labels` and the result as the sequence inside of attentions. A label outside
    of the vocabulary has the logit 0.
    """
    splits = splits_in_force()
    sharding = None if splits is None else _sharding_of(splits, x, kernel, vocab_dim)
    if sharding is None:
        # Tokens that the compiler has split would be gathered to be cut into chunks.
        chunks = 1 if splits else chunks_of(math.prod(labels.shape), kernel.shape[vocab_dim])
        sharding = HeadSharding(vocab_dim=vocab_dim, chunks=chunks)
    return _token_losses(sharding, x, kernel, labels)


def _sharding_of(splits: Splits, x: Array, kernel: Array, vocab_dim: int) -> HeadSharding | None:
    """The sharding under a layout; None where a rule of the user's makes it another pattern than that of this file."""
    if splits.weight_axes_of is None or splits.axes_of("embed"):
        return None
    names = ("vocab", "embed") if vocab_dim == 0 else ("embed", "vocab")
    tokens, vocab = tuple(map(splits.axes_of, SEQUENCE)), splits.axes_of("vocab")
    used = tuple(map(splits.axes_of, names))
    degree, parts = (math.prod(splits.mesh.shape[axis] for axis in axes) for axes in (unique_axes(tokens), vocab))
    sharding = HeadSharding(
        mesh=splits.mesh,
        x=DimAxes(stored=(*map(splits.axes_of, RESIDUAL), ()), used=(*tokens, ())),
        kernel=weight_axes(splits.weight_axes_of, names, used),
        gradient=gradient_axes(splits.gradient_axes_of(names, kernel.shape), used, unique_axes(tokens)),
        tokens=tokens,
        vocab=vocab,
        vocab_dim=vocab_dim,
        chunks=chunks_of(math.prod(x.shape[:2]) // degree, kernel.shape[vocab_dim] // parts),
    )
    over = sharding.tokens_over
    scattered = (
        sharding.x.can_scatter(vocab),
        *(each.can_scatter(over) for each in (sharding.kernel, sharding.gradient)),
    )
    return sharding if all(scattered) and not {*over} & {*vocab} else None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_losses(sharding: HeadSharding, x, kernel, labels):
    return _losses_and_kept(sharding, x, kernel, labels)[0]


def _forward(sharding: HeadSharding, x, kernel, labels):
    losses, kept = _losses_and_kept(sharding, x.value, kernel.value, labels.value)
    # Of a head that nothing differentiates by no gradient is computed: a static fact, in the tree of the residuals.
    return losses, (kept, () if kernel.perturbed else None)


def _losses_and_kept(sharding: HeadSharding, x, kernel, labels):
    run = partial(_forward_part, sharding)
    if sharding.mesh is not None:
        of_tokens = sharding.of_tokens
        run = jax.shard_map(
            run,
            mesh=sharding.mesh,
            in_specs=(sharding.x.spec, sharding.kernel.spec, of_tokens),
            out_specs=(of_tokens, of_tokens, sharding.of_logits),
            check_vma=False,
        )
    losses, log_sums, logits = run(x, kernel, labels)
    return losses, (x, kernel, labels, log_sums, logits)


def _backward(sharding: HeadSharding, residuals, gradients):
    residuals, trains = residuals[0], residuals[1] is not None
    run = partial(_backward_part, sharding, trains)
    if sharding.mesh is not None:
        of_tokens, of_x = sharding.of_tokens, sharding.x.spec
        run = jax.shard_map(
            run,
            mesh=sharding.mesh,
            in_specs=(of_x, sharding.kernel.spec, of_tokens, of_tokens, sharding.of_logits, of_tokens),
            out_specs=(of_x, sharding.gradient.spec if trains else None),
            check_vma=False,
        )
    of_x, of_kernel = run(*residuals, gradients)
    x, kernel, *_ = residuals
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype) if trains else None, None


_token_losses.defvjp(_forward, _backward, symbolic_zeros=True)


# ── the part of one device ───────────────────────────────────────────────────────────────────────────


def _forward_part(sharding: HeadSharding, x, kernel, labels):
    x, kernel, labels = _gathered(sharding, x, kernel, labels)
    statistics, logits = token_statistics(x, kernel, labels, vocab_dim=sharding.vocab_dim, chunks=sharding.chunks)
    largest, exponentials, chosen = _of_all_ids(sharding, statistics)
    log_sums = jnp.log(exponentials) + largest
    return log_sums - chosen, log_sums, logits


def _backward_part(sharding: HeadSharding, trains: bool, x, kernel, labels, log_sums, logits, gradients):
    x, kernel, labels = _gathered(sharding, x, kernel, labels)
    of_x, of_kernel = token_gradients(
        *(x, kernel, labels, log_sums, gradients, logits),
        vocab_dim=sharding.vocab_dim,
        chunks=sharding.chunks,
        trains=trains,
    )
    if sharding.mesh is None:
        return of_x, of_kernel
    of_x = sharding.x.sum(of_x, sharding.vocab)
    return of_x, sharding.gradient.sum(of_kernel, sharding.tokens_over) if trains else None


def _gathered(sharding: HeadSharding, x, kernel, labels):
    """What a device multiplies; its labels are counted from the first id of its part of the vocabulary."""
    if sharding.mesh is None:
        return x, kernel, labels
    kernel = sharding.kernel.gather(kernel)
    if sharding.vocab:
        labels = labels - jax.lax.axis_index(sharding.vocab) * kernel.shape[sharding.vocab_dim]
    return sharding.x.gather(x), kernel, labels


def _of_all_ids(sharding: HeadSharding, part: TokenStatistics) -> TokenStatistics:
    """The statistics over all parts of the vocabulary."""
    if not sharding.vocab:
        return part
    largest = jax.lax.pmax(part.largest, sharding.vocab)
    scaled = part.exponentials * jnp.exp(part.largest - largest)
    return TokenStatistics(largest, *jax.lax.psum(jnp.stack([scaled, part.chosen]), sharding.vocab))
