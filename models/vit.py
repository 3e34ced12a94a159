"""Vision transformer: images in, tokens of the language model's width out (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.checks import check_divides, check_positive
from hetjax.models.dims import RESIDUAL, ROWS, constrain, named
from hetjax.models.errors import ModelError
from hetjax.models.parallel.sharded_linear import project
from hetjax.models.parts.image_patches import cut_images
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.mlp import GeluMLP
from hetjax.models.parts.norms import LayerNorm
from hetjax.models.parts.stack import Stack
from hetjax.models.parts.vision_block import VisionBlock
from hetjax.models.stages import LayerCosts, StageCut, check_inputs, cut_stage

# B batch · I images a sample · H W height and width in pixels · C channels · N tokens an image = (H/P)(W/P)
# T tokens a sample = I*N · P patch side · D width of the encoder · E width of the language model


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of a vision encoder."""

    image_size: int
    """Height and width of every image, in pixels."""
    patch_size: int
    """Side of a square patch, in pixels; divides image_size."""
    channels: int = 3
    """Colour channels of an image."""
    width: int
    """Width of the residual stream."""
    layers: int
    """Number of transformer layers."""
    heads: int
    """Attention heads of each layer; divides width."""
    mlp_width: int
    """Hidden width of each layer's MLP."""
    projector_width: int
    """Hidden width of the MLP that projects to the language model."""
    output_width: int
    """Width of the language model that takes the tokens."""
    norm_epsilon: float = 1e-6
    """Added to the variance in every LayerNorm."""

    def __post_init__(self):
        check_positive(self)
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "heads", "width")

    @property
    def tokens_per_image(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class VisionEncoder(nnx.Module):
    """Patches, learned positions, `layers` blocks, a final norm and a projector of two layers.

    Every image is a sequence of its own for attention. The encoder computes in the dtype of its weights.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        self.patch = Linear(
            {"patch": config.patch_size**2 * config.channels}, {"embed": config.width}, bias=True, rngs=rngs
        )
        positions = named(nnx.initializers.normal(0.02), None, "width")
        self.positions = nnx.Param(positions(rngs.params(), (config.tokens_per_image, config.width), jnp.float32))
        self.layers = Stack(lambda layer_rngs: _block(config, layer_rngs), config.layers, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        self.projector = GeluMLP(config.width, config.projector_width, config.output_width, rngs=rngs)

    @property
    def tokens_per_image(self) -> int:
        return self.config.tokens_per_image

    @property
    def input_ports(self) -> tuple[str, ...]:
        return ("images",) if self.cut.first else ("hidden",)

    @property
    def optional_ports(self) -> tuple[str, ...]:
        return ()

    @property
    def port_dims(self) -> dict[str, tuple[str, ...]]:
        """The dims of the ports that run along the tokens."""
        return {"hidden": ("batch", None, "residual_seq", "embed"), "tokens": (*ROWS, "embed")}

    @property
    def independent_samples(self) -> bool:
        """No token of a sample sees another sample."""
        return True

    @property
    def layer_costs(self) -> LayerCosts:
        """Multiplications a token in products with weights, to cut stages of equal cost."""
        config = self.config
        layer = 4 * config.width**2 + 2 * config.width * config.mlp_width
        patch = config.patch_size**2 * config.channels * config.width
        projector = config.projector_width * (config.width + config.output_width)
        return LayerCosts(first=patch, layers=(layer,) * config.layers, last=projector)

    def stage(self, index: int, count: int, layers: Sequence[int] | None = None) -> VisionEncoder:
        """Pipeline stage `index` of `count`: `hidden` passes between stages; see `hetjax.models.stages.cut_stage`."""
        return cut_stage(self, index, count, layers, first=("patch", "positions"), last=("norm", "projector"))

    def __call__(
        self, images: Float[Array, "B I H W C"] | None = None, hidden: Float[Array, "B I N D"] | None = None
    ) -> dict[str, Float[Array, "B ..."]]:
        """The whole encoder, or its last stage, returns {"tokens": [B, T, E]}, others {"hidden": [B, I, N, D]}."""
        check_inputs(self, self.input_ports, {"images": images, "hidden": hidden})
        batch = (images if self.cut.first else hidden).shape[0]
        x = self._embed(images) if self.cut.first else hidden.reshape(-1, *hidden.shape[2:])
        x, _ = self.layers.scan(lambda block, x, _: (block(x), None), constrain(x, *RESIDUAL, "embed"))
        if not self.cut.last:
            # Still by image: where the layout splits the tokens of each, the next stage does so too.
            return {"hidden": x.reshape(batch, -1, *x.shape[1:])}
        x = constrain(self.projector(self.norm(x), wanted=ROWS), *ROWS, "embed")
        return {"tokens": constrain(x.reshape(batch, -1, x.shape[-1]), *ROWS, "embed")}

    def _embed(self, images: Float[Array, "B I H W C"]) -> Float[Array, "images N D"]:
        side, patch = self.config.image_size, self.config.patch_size
        if images.ndim != 5 or images.shape[2:] != (side, side, self.config.channels):
            raise ModelError(
                f"VisionEncoder: images have shape {images.shape}; "
                f"give [batch, images, {side}, {side}, {self.config.channels}] as the config says"
            )
        patches = cut_images(images.astype(self.patch.dtype), patch)
        patches = constrain(patches, *RESIDUAL, "patch")
        return project(patches, self.patch, given=RESIDUAL, wanted=RESIDUAL)[0] + self.positions[...]


def _block(config: VisionConfig, rngs: nnx.Rngs) -> VisionBlock:
    return VisionBlock(config.width, config.heads, config.mlp_width, norm_epsilon=config.norm_epsilon, rngs=rngs)
