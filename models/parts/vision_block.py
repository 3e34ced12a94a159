"""The layer of the vision transformers: attention in both directions and an MLP, with norms before each."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, constrain
from hetjax.models.parts.attention import Attention, Windows
from hetjax.models.parts.mlp import GeluMLP
from hetjax.models.parts.norms import LayerNorm
from hetjax.models.remat import point

# B batch, or images that are sequences of their own · N rows · D width


class VisionBlock(nnx.Module):
    """Pre-norm bidirectional attention and MLP, each added to the residual stream (Dosovitskiy et al. 2021).

    All maps have biases, but for those to queries, keys and values without `qkv_bias`. There are no rotations, so that
    the bias of the keys changes no output; it gets no gradient.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        norm_epsilon: float,
        qkv_bias: bool = False,
        approximate_gelu: bool = False,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = LayerNorm(width, epsilon=norm_epsilon, rngs=rngs)
        self.attention = Attention(
            width,
            heads,
            heads,
            width // heads,
            output_bias=True,
            qkv_bias=qkv_bias,
            fixed_key_bias=qkv_bias,
            rngs=rngs,
        )
        self.mlp_norm = LayerNorm(width, epsilon=norm_epsilon, rngs=rngs)
        self.mlp = GeluMLP(width, mlp_width, width, approximate=approximate_gelu, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B N D"], segments: Int[Array, "B N"] | None = None, windows: Windows | None = None
    ) -> Float[Array, "B N D"]:
        """With `segments`, an id a row, a row attends to the rows of its own id only; without, to all.

        No id is in two of the `windows` that `Attention` takes.
        """
        attended, _ = self.attention(self.attention_norm(x), segments=segments, windows=windows)
        x = constrain(x + point(attended, "attention"), *RESIDUAL, "embed")
        return constrain(x + point(self.mlp(self.mlp_norm(x)), "mlp"), *RESIDUAL, "embed")
