"""Vision transformer: images to tokens of the language model's width (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hetjax.models.dims import RESIDUAL, SEQUENCE, constrain, named
from hetjax.models.encoder import Encoder
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.image_patches import check_images, image_patches
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.mlp import GeluMLP
from hetjax.models.parts.norms import LayerNorm
from hetjax.models.parts.vision_block import vision_layer_cost, vision_layers
from hetjax.models.scopes import scope
from hetjax.models.stages import StageCut, check_inputs
from hetjax.models.vision_config import VisionConfig

# B batch · I images a sample · H W height and width in pixels · C channels · N tokens an image = (H/P)(W/P)
# T tokens a sample = I*N · P patch side · D width of the encoder · E width of the language model


class VisionEncoder(Encoder):
    """Patches, learned positions, `layers` blocks, a final norm and a projector of two layers.

    Every image is a sequence of its own for attention. The encoder computes in the dtype of its weights.
    """

    first_stage, last_stage = ("patch", "positions"), ("norm", "projector")

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        self.patch = Linear(
            {"patch": config.patch_size**2 * config.channels}, {"embed": config.width}, bias=True, rngs=rngs
        )
        positions = named(nnx.initializers.normal(0.02), None, "width")
        self.positions = nnx.Param(positions(rngs.params(), (config.tokens_per_image, config.width), jnp.float32))
        self.layers = vision_layers(config, rngs=rngs)
        self.norm = LayerNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        self.projector = GeluMLP(config.width, config.projector_width, config.output_width, rngs=rngs)

    @property
    def tokens_per_image(self) -> int:
        """Number of tokens of an image, N."""
        return self.config.tokens_per_image

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        return ("images",) if self.cut.first else ("hidden",)

    @property
    def port_dims(self) -> dict[str, tuple[str, ...]]:
        """The dims of the ports that run along the tokens."""
        return {"hidden": ("batch", None, "residual_seq", "embed"), "tokens": (*SEQUENCE, "embed")}

    def multiplications(self) -> tuple[float, float, float]:
        """Return those of (patches, each layer, the projector), a token."""
        config = self.config
        patch = config.patch_size**2 * config.channels * config.width
        projector = config.projector_width * (config.width + config.output_width)
        return patch, vision_layer_cost(config), projector

    def __call__(
        self, images: Float[Array, "B I H W C"] | None = None, hidden: Float[Array, "B I N D"] | None = None
    ) -> dict[str, Float[Array, "B ..."]]:
        """Return {"tokens": [B, T, E]} from the whole encoder and its last stage, {"hidden": [B, I, N, D]} from others.

        Raises ModelError where inputs lack or images are not of the config's size.
        """
        check_inputs(self, self.input_ports, {"images": images, "hidden": hidden})
        batch = (images if self.cut.first else hidden).shape[0]
        x = self._embed(images) if self.cut.first else hidden.reshape(-1, *hidden.shape[2:])
        x, _ = self.layers.scan(lambda block, x, _: (block(x), None), constrain(x, *RESIDUAL, "embed"))
        if not self.cut.last:
            # Still by image: where the layout splits the tokens of each, the next stage does so too.
            return {"hidden": x.reshape(batch, -1, *x.shape[1:])}
        x = self.norm(x)
        with scope("projector"):
            x = self.projector(x, wanted=SEQUENCE)
        x = constrain(x, *SEQUENCE, "embed")
        return {"tokens": constrain(x.reshape(batch, -1, x.shape[-1]), *SEQUENCE, "embed")}

    @scope("patch_embedding")
    def _embed(self, images: Float[Array, "B I H W C"]) -> Float[Array, "images N D"]:
        check_images(images, self.config.image_size, self.config.channels, owner="VisionEncoder")
        patches = image_patches(images.astype(self.patch.dtype), self.config.patch_size)
        patches = constrain(patches, *RESIDUAL, "patch")
        return sharded_linear(patches, self.patch, given=RESIDUAL, wanted=RESIDUAL)[0] + self.positions[...]
