"""A FastConformer layer (Rekesh et al. 2023)."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Bool, Float

from hetjax.models.dims import constrain
from hetjax.models.parakeet_config import ParakeetConfig
from hetjax.models.parts.conformer.attention import RelativeAttention
from hetjax.models.parts.conformer.convolution import Convolution
from hetjax.models.parts.conformer.dims import TOKENS
from hetjax.models.parts.conformer.feed_forward import FeedForward
from hetjax.models.parts.norms import LayerNorm
from hetjax.models.remat import point

# B batch · C clips a sample · N tokens of a clip · D width · P distances = 2N - 1


class ConformerBlock(nnx.Module):
    """Half a feed-forward network, attention, convolution and the other half, each of a norm's output and added to
    the residual stream; then a norm of the stream itself."""

    def __init__(self, config: ParakeetConfig, *, rngs: nnx.Rngs):
        width, epsilon = config.width, config.norm_epsilon
        self.first_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.first = FeedForward(width, config.mlp_width, rngs=rngs)
        self.attention_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.attention = RelativeAttention(width, config.heads, rngs=rngs)
        self.convolution_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.convolution = Convolution(
            width,
            config.conv_taps,
            epsilon=epsilon,
            momentum=config.batch_norm_momentum,
            norm_by_batch=config.batch_norm == "train",
            rngs=rngs,
        )
        self.second_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.second = FeedForward(width, config.mlp_width, rngs=rngs)
        self.output_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B C N D"], distances: Float[Array, "P D"], valid: Bool[Array, "B C N"]
    ) -> Float[Array, "B C N D"]:
        """Return x after the layer; `distances` are those of `encode_distances`."""
        x = x + 0.5 * point(self.first(self.first_norm(x)), "mlp")
        x = constrain(x, *TOKENS, "embed")
        x = x + point(self.attention(self.attention_norm(x), distances, valid), "attention")
        x = constrain(x, *TOKENS, "embed")
        x = x + point(self.convolution(self.convolution_norm(x), valid), "convolution")
        x = constrain(x, *TOKENS, "embed")
        x = x + 0.5 * point(self.second(self.second_norm(x)), "mlp")
        return self.output_norm(constrain(x, *TOKENS, "embed"))
