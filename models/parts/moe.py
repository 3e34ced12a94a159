"""Mixture of experts: each token is computed by the few experts that its router chooses (Shazeer et al. 2017).

    y = sum over the chosen e of w_e * expert_e(x)   (+ shared(x))

Experts are stacked weights with the dim "experts". `hetjax.models.parallel.expert_parallel` sends tokens to them where
that dim is split over devices. No token is dropped unless `capacity_factor` is given.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.checks import check_positive
from hetjax.models.dims import CHOSEN, RESIDUAL, SEQUENCE, constrain, named
from hetjax.models.errors import ModelError
from hetjax.models.kernels.grouped_experts import Activation, ExpertKernels
from hetjax.models.parallel.expert_parallel import expert_parallel
from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.linear import fan_in_normal
from hetjax.models.parts.mlp import ReLU2MLP, SwiGLU
from hetjax.models.parts.router import Router, Scores, within_capacity
from hetjax.models.scopes import scope

# B batch · S sequence · D width · F hidden width of an expert · E experts · K experts chosen by a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A mixture of experts in the place of a layer's MLP."""

    count: int
    """Number of experts, E."""
    top_k: int
    """Experts that each token goes to, K."""
    activation: Activation = "swiglu"
    """swiglu: down(silu(gate(x)) * up(x)); relu2: down(relu(up(x))²)."""
    shared_width: int = 0
    """Hidden width of an expert of the same kind that every token goes to; 0 for none."""
    scores: Scores = "softmax"
    """softmax over all experts, or sigmoid of each."""
    normalize: bool = True
    """Divide the weights of a token's experts by their sum."""
    factor: float = 1.0
    """Multiplies the weights of a token's experts."""
    bias_rate: float | None = None
    """Step of the bias that balances the load without a loss; 0 for a bias that stays, null for none."""
    balance_loss: float = 0.0
    """Coefficient of the sequence-balance loss; 0 for none."""
    capacity_factor: float | None = None
    """Most tokens of one sequence that an expert takes, in shares of S*K/E; the rest is dropped. null drops none."""
    margin: float = 1.2
    """Room for tokens on a device with experts, in shares of what arrives under an even load; what is more comes in
    further rounds. Changes no number."""

    def __post_init__(self):
        for name, least in (("count", 1), ("top_k", 1), ("shared_width", 0), ("bias_rate", 0), ("balance_loss", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ModelError(f"MoEConfig: {name} = {value} must be {least} or more")
        check_positive(self, ("factor", "capacity_factor", "margin"))
        if self.top_k > self.count:
            raise ModelError(
                f"MoEConfig: top_k <= count must hold, but {self.top_k} > {self.count}: a token takes each expert "
                "once at most; lower top_k or raise count"
            )
        for name, known in (("activation", ("swiglu", "relu2")), ("scores", ("softmax", "sigmoid"))):
            if getattr(self, name) not in known:
                raise ModelError(f"MoEConfig: {name} = {getattr(self, name)!r}; choose {' or '.join(known)}")

    def capacity(self, length: int) -> int | None:
        """Return the most tokens of a sequence of this length that one expert takes; None for all."""
        if self.capacity_factor is None:
            return None
        return min(length, math.ceil(self.capacity_factor * length * self.top_k / self.count))

    def multiplications(self, width: int, hidden: int) -> int:
        """Return those of one token in products with weights: its experts, the shared one, the router."""
        kernels = 3 if self.activation == "swiglu" else 2
        return width * (kernels * (self.top_k * hidden + self.shared_width) + self.count)


class MoE(nnx.Module):
    """A router, `config.count` experts of hidden width `hidden`, and the shared expert; without biases."""

    def __init__(self, width: int, hidden: int, config: MoEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.router = Router(
            width,
            config.count,
            config.top_k,
            scores=config.scores,
            normalize=config.normalize,
            factor=config.factor,
            bias_rate=config.bias_rate,
            balance_loss=config.balance_loss,
            rngs=rngs,
        )
        into, out = (config.count, width, hidden), (config.count, hidden, width)
        gated = config.activation == "swiglu"
        self.gate = _kernel(into, ("experts", "embed", "mlp"), rngs) if gated else None
        self.up = _kernel(into, ("experts", "embed", "mlp"), rngs)
        self.down = _kernel(out, ("experts", "mlp", "embed"), rngs)
        kind = SwiGLU if gated else ReLU2MLP
        self.shared = kind(width, config.shared_width, rngs=rngs) if config.shared_width else None

    @scope("experts")
    def __call__(
        self, x: Float[Array, "B S D"], *, order: SequenceOrder | None = None, training: bool = True
    ) -> tuple[Float[Array, "B S D"], Float[Array, " B"] | None]:
        """Return (output, sequence-balance loss of each sequence or None without a coefficient).

        In training, choices are counted for the router's bias, and tokens beyond an expert's capacity are dropped:
        they get nothing from it. `order` is that of the sequence.
        """
        tokens = constrain(x, *SEQUENCE, "embed")
        routing = self.router(tokens, training=training)
        experts, capacity = routing.experts, self.config.capacity(x.shape[1]) if training else None
        if capacity is not None:
            experts = within_capacity(experts, self.config.count, capacity, order)
        first = (self.up[...],) if self.gate is None else (self.gate[...], self.up[...])
        kernels = ExpertKernels(first, self.down[...])
        config = self.config
        weights = constrain(routing.weights, *SEQUENCE, CHOSEN)
        y = expert_parallel(tokens, experts, weights, kernels, config.activation, capacity, config.margin)
        y = constrain(y, *RESIDUAL, "embed")
        return y if self.shared is None else y + self.shared(x), routing.balance

    def end_of_step(self) -> None:
        """Move the router's bias."""
        self.router.end_of_step()


def _kernel(shape: tuple[int, int, int], dims: tuple[str, str, str], rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(named(fan_in_normal(shape[1]), *dims)(rngs.params(), shape, jnp.float32))
