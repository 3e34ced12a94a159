"""The layers of the vision transformers: attention in both directions and an MLP, with norms before each."""

from __future__ import annotations

from typing import Protocol

from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, constrain
from hetjax.models.parts.attention import Attention, Windows
from hetjax.models.parts.mlp import Gelu, GeluMLP
from hetjax.models.parts.norms import LayerNorm
from hetjax.models.parts.rope import RopeTable
from hetjax.models.parts.stack import Stack
from hetjax.models.remat import point

# B batch, or images that are sequences of their own · N tokens · D width


class VisionSizes(Protocol):
    """The sizes of a vision transformer, as the configs of all of them name them."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    norm_epsilon: float


class VisionBlock(nnx.Module):
    """Pre-norm bidirectional attention and MLP, each added to the residual stream (Dosovitskiy et al. 2021).

    All maps have biases, but for those to queries, keys and values without `qkv_bias`. Where nothing is `rotated`, the
    bias of the keys changes no output; it gets no gradient.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        norm_epsilon: float,
        qkv_bias: bool = False,
        gelu: Gelu = "exact",
        rotated: bool = False,
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
            fixed_key_bias=qkv_bias and not rotated,
            rngs=rngs,
        )
        self.mlp_norm = LayerNorm(width, epsilon=norm_epsilon, rngs=rngs)
        self.mlp = GeluMLP(width, mlp_width, width, gelu=gelu, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N D"],
        segments: Int[Array, "B N"] | None = None,
        windows: Windows | None = None,
        rope: RopeTable | None = None,
    ) -> Float[Array, "B N D"]:
        """Return x after the layer. With `segments`, an id a token, it attends to its own id only; without, to all.

        No id is in two of the `windows` that `Attention` takes. `rope` is for layers that are `rotated`.
        """
        attended, _ = self.attention(self.attention_norm(x), segments=segments, windows=windows, rope=rope)
        x = constrain(x + point(attended, "attention"), *RESIDUAL, "embed")
        return constrain(x + point(self.mlp(self.mlp_norm(x)), "mlp"), *RESIDUAL, "embed")


def vision_layers(
    config: VisionSizes, *, qkv_bias: bool = False, gelu: Gelu = "exact", rotated: bool = False, rngs: nnx.Rngs
) -> Stack:
    """Build the layers of a vision transformer."""
    return Stack(
        lambda layer_rngs: VisionBlock(
            config.width,
            config.heads,
            config.mlp_width,
            norm_epsilon=config.norm_epsilon,
            qkv_bias=qkv_bias,
            gelu=gelu,
            rotated=rotated,
            rngs=layer_rngs,
        ),
        config.layers,
        rngs=rngs,
    )


def vision_layer_cost(config: VisionSizes) -> int:
    """Return the multiplications a token, in products with weights, of one layer."""
    return 4 * config.width**2 + 2 * config.width * config.mlp_width
