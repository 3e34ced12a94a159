"""One layer of a hybrid language model, and what it keeps from token to token when it generates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, constrain
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.attention import Attention, Cache
from hetjax.models.parts.mamba import Mamba2, MambaCache
from hetjax.models.parts.mlp import ReLU2MLP
from hetjax.models.parts.moe import MoE
from hetjax.models.parts.norms import RMSNorm
from hetjax.models.remat import point

# B batch · S sequence · D width

LayerCache = Cache | MambaCache | None
"""Keys and values of attention, the states of Mamba; None where a token needs no other."""


class HybridLayer(nnx.Module):
    """x + mixer(RMSNorm(x)), with the mixer that `letter` of the pattern stands for."""

    def __init__(self, letter: str, config: NemotronHConfig, *, rngs: nnx.Rngs):
        self.letter = letter
        self.norm = RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        match letter:
            case "M":
                self.mixer = Mamba2(config.width, config.mamba, rngs=rngs)
            case "*":
                self.mixer = Attention(config.width, config.heads, config.kv_heads, config.head_dim, rngs=rngs)
            case "E":
                self.mixer = MoE(config.width, config.expert_width, config.experts, rngs=rngs)
            case "-":
                self.mixer = ReLU2MLP(config.width, config.mlp_width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        training: bool,
        order: SequenceOrder | None = None,
        segments: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        lengths: Int[Array, " B"] | None = None,
        cache: LayerCache = None,
    ) -> tuple[Float[Array, "B S D"], LayerCache, Float[Array, " B"] | None]:
        """Return (x after the layer, cache, balance loss of each sequence).

        Training has the `order` of the sequence, and `segments` in it; generation has `positions`, a cache where the
        layer keeps one, and in a prefill of prompts that are padded at their ends their `lengths`.
        """
        balance, new = None, self.norm(x)
        match self.letter:
            case "M":
                new, cache = self.mixer(new, order=order, segments=segments, cache=cache, lengths=lengths)
            case "*":
                new, cache = self.mixer(new, order=order, segments=segments, positions=positions, cache=cache)
            case "E":
                new, balance = self.mixer(new, order=order, training=training)
            case "-":
                new = self.mixer(new)
        return constrain(x + point(new, POINT_BY_LETTER[self.letter]), *RESIDUAL, "embed"), cache, balance

    def end_of_step(self) -> None:
        """Move what balances the experts."""
        if self.letter == "E":
            self.mixer.end_of_step()


POINT_BY_LETTER = {"M": "mamba", "*": "attention", "E": "mlp", "-": "mlp"}
"""The name of what a layer adds to the residual stream, as `hetjax.models.remat.POINTS` has it."""


def layer_cost(letter: str, config: NemotronHConfig) -> int:
    """Return the multiplications a token, in products with weights, of a layer of this kind."""
    width = config.width
    match letter:
        case "M":
            return config.mamba.multiplications(width)
        case "*":
            return 2 * width * config.head_dim * (config.heads + config.kv_heads)
        case "E":
            return config.experts.multiplications(width, config.expert_width)
    return 2 * width * config.mlp_width


def empty_layer_cache(
    letter: str, sizes: tuple[int, ...], config: NemotronHConfig, batch: int, length: int, dtype: jax.typing.DTypeLike
) -> LayerCache:
    """Return what layers keep before the first token, for `batch` sequences of `length`; arrays lead with `sizes`."""
    if letter == "*":
        shape = (*sizes, batch, length, config.kv_heads, config.head_dim)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    if letter == "M":
        one = MambaCache.empty(config.mamba, batch, dtype)
        return jax.tree.map(lambda array: jnp.zeros((*sizes, *array.shape), array.dtype), one)
    return None


def layer_cache_dims(letter: str, sizes: tuple[int, ...]) -> LayerCache:
    """Return the dim names of each array of such a cache, in its tree."""
    lead = ("layers",) * len(sizes)
    if letter == "*":
        dims = (*lead, "batch", "seq", "kv_heads", "head_dim")
        return Cache(dims, dims)
    if letter == "M":
        is_dims = lambda tree: not hasattr(tree, "_fields")  # noqa: E731
        return jax.tree.map(lambda dims: (*lead, *dims), MambaCache.dims(), is_leaf=is_dims)
    return None
