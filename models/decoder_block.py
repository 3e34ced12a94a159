"""One layer of the decoder: attention, and an MLP or a mixture of experts."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.dims import RESIDUAL, constrain
from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.attention import Attention, Cache
from hetjax.models.parts.mlp import SwiGLU
from hetjax.models.parts.moe import MoE
from hetjax.models.parts.norms import RMSNorm
from hetjax.models.parts.rope import RopeTable
from hetjax.models.remat import point

# B batch · S sequence · D width


class DecoderBlock(nnx.Module):
    """Pre-norm causal attention and SwiGLU or a mixture of experts, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        head_epsilon = config.norm_epsilon if config.query_key_norm else None
        self.attention = Attention(
            config.width, config.heads, config.kv_heads, config.head_dim, head_norm_epsilon=head_epsilon, rngs=rngs
        )
        self.mlp_norm = RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        if config.experts is None:
            self.mlp = SwiGLU(config.width, config.mlp_width, rngs=rngs)
        else:
            self.mlp = MoE(config.width, config.mlp_width, config.experts, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        cache: Cache | None = None,
        *,
        positions: Int[Array, "#B S"] | None = None,
        order: SequenceOrder | None = None,
        segments: Int[Array, "B S"] | None = None,
        rope: RopeTable | None = None,
    ) -> tuple[Float[Array, "B S D"], Cache | None, Float[Array, " B"] | None]:
        """Return (x after the layer, cache, balance loss of each sequence); other arguments are those of `Attention`.

        Without a cache this is training, where experts are counted and may drop tokens.
        """
        training, balance = cache is None, None
        attended, cache = self.attention(
            self.attention_norm(x), positions=positions, order=order, segments=segments, rope=rope, cache=cache
        )
        x = constrain(x + point(attended, "attention"), *RESIDUAL, "embed")
        new = self.mlp_norm(x)
        if isinstance(self.mlp, MoE):
            new, balance = self.mlp(new, order=order, training=training)
        else:
            new = self.mlp(new)
        return constrain(x + point(new, "mlp"), *RESIDUAL, "embed"), cache, balance

    def end_of_step(self) -> None:
        """Move what balances the experts."""
        if isinstance(self.mlp, MoE):
            self.mlp.end_of_step()
