"""Choose the experts of each token, and their weights.

With scores s_e = softmax(x W)_e or sigmoid(x W)_e of E experts, a token takes the k experts of largest
s_e + b_e, each with the weight s_e, over the sum of the k and times a factor where asked for:

    w_e = factor * s_e / (sum over the chosen s + 1e-20)

The bias b (Wang et al. 2024, auxiliary-loss-free load balancing; DeepSeek-V3) takes part in the choice alone
and has no gradient. After each training step it moves towards the experts that were asked for too seldom,

    b_e += u * sign(mean(count) - count_e)

where count_e tokens of the whole batch, on all devices and in all microbatches, chose expert e. So during
a step the bias stays, and counts collect in a variable beside it.

The sequence-balance loss (DeepSeek-V2 and V3) of one sequence of S tokens is, with p = s / sum(s),

    coefficient * E / (k * S²) * sum over e of (sum over tokens p_e) * count_e(sequence)

Every token that a router is given is routed and counts, padding too, since experts compute it like any other;
documents packed into one row of a batch count as one sequence.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from hetjax.models.dims import constrain, named
from hetjax.models.parallel.per_device import per_device
from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.linear import fan_in_normal
from hetjax.models.scopes import scope

# B batch · S sequence · D width · E experts · K experts chosen by a token

Scores = Literal["softmax", "sigmoid"]


class RoutingState(nnx.Variable):
    """State of a router that does not train: its bias, and the counts that move it."""


class Routing(NamedTuple):
    """The choice of every token.

    Attributes:
        experts: numbers of the chosen experts, best first, no expert twice.
        weights: their weights, in float32 at least.
        balance: the sequence-balance loss of each sequence; None without a coefficient.
    """

    experts: Int[Array, "B S K"]
    weights: Float[Array, "B S K"]
    balance: Float[Array, " B"] | None


class Router(nnx.Module):
    """Scores every expert for every token and chooses `top_k`; scores are float32 at least, whatever the weights.

    Args:
        width, experts, top_k: D, E and K.
        scores: "softmax" over all experts, or "sigmoid" of each.
        normalize: divide the weights of a token by their sum.
        factor: multiplies all weights.
        bias_rate: u above; 0 for a bias that stays, None for none.
        balance_loss: coefficient of the sequence-balance loss; 0 for none.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        *,
        scores: Scores = "softmax",
        normalize: bool = True,
        factor: float = 1.0,
        bias_rate: float | None = None,
        balance_loss: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.top_k, self.bias_rate = top_k, bias_rate
        self.options = _Options(scores, normalize, factor, balance_loss)
        # Whole on all devices that share out the experts: each of them scores all experts for its own tokens.
        init = named(fan_in_normal(width), "embed", None)
        self.kernel = nnx.Param(init(rngs.params(), (width, experts), jnp.float32))
        if bias_rate is None:
            self.bias = self.counts = None
        else:
            self.bias = RoutingState(jnp.zeros(experts, jnp.float32))
            self.counts = RoutingState(jnp.zeros(experts, jnp.int32))

    @scope("router")
    def __call__(self, x: Float[Array, "B S D"], *, training: bool = True) -> Routing:
        """Return the choice of every token; in training, what was chosen is counted for the bias."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("bsd,de->bse", x, self.kernel[...], preferred_element_type=wide)
        logits = constrain(logits, "batch", "seq", None)
        preference = jax.lax.stop_gradient(_scores(logits, self.options.scores))
        if self.bias is not None:
            preference = preference + self.bias[...].astype(wide)
        experts = per_device(("batch", "seq"), partial(_best, self.top_k))(preference)
        weights, balance = _weigh(logits, experts, self.options)
        if training and self.counts is not None:
            chosen = _chosen(experts, logits.shape[-1])
            self.counts[...] = self.counts[...] + chosen.sum(axis=(0, 1, 2), dtype=jnp.int32)
        return Routing(experts, weights, balance)

    def end_of_step(self) -> None:
        """Move the bias by what was counted since the last call, and count from 0."""
        if self.counts is None:
            return
        counts = self.counts[...].astype(self.bias[...].dtype)
        self.bias[...] = self.bias[...] + self.bias_rate * jnp.sign(counts.mean() - counts)
        self.counts[...] = jnp.zeros_like(self.counts[...])


class _Options(NamedTuple):
    scores: Scores
    normalize: bool
    factor: float
    balance_loss: float


def _scores(logits: Float[Array, "B S E"], kind: Scores) -> Float[Array, "B S E"]:
    return jax.nn.softmax(logits, axis=-1) if kind == "softmax" else jax.nn.sigmoid(logits)


def _best(count: int, preference: Float[Array, "B S E"]) -> Int[Array, "B S K"]:
    """The experts of largest preference, best first; of equal ones the first."""
    return jax.lax.top_k(preference, count)[1]


def _chosen(experts: Int[Array, "B S K"], count: int) -> Bool[Array, "B S K E"]:
    # By comparing an iota instead of by an index, so that tokens stay on their devices.
    return experts[..., None] == jnp.arange(count, dtype=experts.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _weigh(
    logits: Float[Array, "B S E"], experts: Int[Array, "B S K"], options: _Options
) -> tuple[Float[Array, "B S K"], Float[Array, " B"] | None]:
    """(weights, balance) of a `Routing`; the backward pass keeps the logits and the choice."""
    scores, chosen = _scores(logits, options.scores), _chosen(experts, logits.shape[-1])
    weights = jnp.where(chosen, scores[:, :, None], 0).sum(axis=-1)
    if options.normalize:
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    if not options.balance_loss:
        return weights * options.factor, None
    share = scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)
    counts = chosen.sum(axis=(1, 2)).astype(share.dtype)
    (length, count), top_k = scores.shape[1:], experts.shape[-1]
    balance = options.balance_loss * count / (top_k * length**2) * (share.sum(axis=1) * counts).sum(axis=-1)
    return weights * options.factor, balance


def within_capacity(
    experts: Int[Array, "B S K"], count: int, capacity: int, order: SequenceOrder | None
) -> Int[Array, "B S K"]:
    """Return `experts`, with `count` (no expert) where a sequence asks an expert for more than `capacity` tokens.

    Of each sequence the tokens that come first in the natural order are kept, whatever `order` they are in
    (None for the natural one), so that what is dropped does not depend on the layout. For numbers of experts
    alone each device takes whole sequences.
    """
    places = None if order is None or order.shards == 1 else order.positions
    whole = constrain(experts, "batch", None, None)
    natural = whole if places is None else whole[:, places.argsort()]
    kept = per_device(("batch",), jax.vmap(partial(_first_ones, count, capacity)))(natural)
    return constrain(kept if places is None else kept[:, places], "batch", "seq", None)


def _first_ones(count: int, capacity: int, experts: Int[Array, "S K"]) -> Int[Array, "S K"]:
    flat = experts.reshape(-1)
    by_expert = jnp.argsort(flat, stable=True)
    starts = jnp.searchsorted(flat[by_expert], jnp.arange(count, dtype=flat.dtype))
    rank = jnp.zeros_like(flat).at[by_expert].set(jnp.arange(flat.size, dtype=flat.dtype)) - starts[flat]
    return jnp.where(rank < capacity, flat, count).reshape(experts.shape).astype(experts.dtype)
