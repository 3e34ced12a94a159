"""CLIP's vision tower (Radford et al. 2021), whose patch features LLaVA projects to a language model's width."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.clip_config import ClipConfig
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

# B batch · I images a sample · H W height and width in pixels · C channels · N patches, and tokens, of an image
# R rows of an image: patches, the class token, padding · D width of the encoder · E width of the language model


class ClipEncoder(Encoder):
    """Patches and a class token with positions, a norm, `layers` blocks and, if the config says so, a projector.

    Every image is a sequence of its own for attention: its patches, the class token behind them, and padding that
    nothing else sees, which makes a length that a layout can split. Tokens are what the last block makes of the patches
    (Liu et al. 2023): the class token, the tower's last norm and its pooling are left out. The projector has two layers
    with a GELU between them (Liu et al. 2023, LLaVA-1.5). The encoder computes in the dtype of its weights.
    """

    first_stage, last_stage = ("patch", "class_token", "positions", "entry_norm"), ("projector",)

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        width = config.width
        self.patch = Linear({"patch": config.patch_dim}, {"embed": width}, rngs=rngs)
        token, positions = (
            named(nnx.initializers.normal(width**-0.5), *dims) for dims in (("width",), (None, "width"))
        )
        self.class_token = nnx.Param(token(rngs.params(), (width,), jnp.float32))
        self.positions = nnx.Param(positions(rngs.params(), (1 + config.tokens_per_image, width), jnp.float32))
        self.entry_norm = LayerNorm(width, epsilon=config.norm_epsilon, rngs=rngs)
        self.layers = vision_layers(config, qkv_bias=True, gelu="sigmoid", rngs=rngs)
        projected = config.projector_width is not None
        self.projector = GeluMLP(width, config.projector_width, config.output_width, rngs=rngs) if projected else None

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        return ("images",) if self.cut.first else ("hidden",)

    @property
    def port_dims(self) -> dict[str, tuple[str | None, ...]]:
        """The dims of the ports that run along the tokens."""
        return {"hidden": ("batch", None, "residual_seq", "embed"), "tokens": (*SEQUENCE, "embed")}

    def multiplications(self) -> tuple[float, float, float]:
        """Return those of (patches, each layer, the projector), a token."""
        config = self.config
        projector = (config.projector_width or 0) * (config.width + (config.output_width or 0))
        return config.patch_dim * config.width, vision_layer_cost(config), projector

    def __call__(
        self, images: Float[Array, "B I H W C"] | None = None, hidden: Float[Array, "B I R D"] | None = None
    ) -> dict[str, Float[Array, "B ..."]]:
        """Return {"tokens": [B, I * N, E]} from the whole encoder and its last stage, else {"hidden": [B, I, R, D]}.

        Without a projector, E is D. Raises ModelError where inputs lack or images are not of the config's size.
        """
        check_inputs(self, self.input_ports, {"images": images, "hidden": hidden})
        batch = (images if self.cut.first else hidden).shape[0]
        x = self._embed(images) if self.cut.first else hidden.reshape(-1, *hidden.shape[2:])
        x, segments = constrain(x, *RESIDUAL, "embed"), self._segments(x.shape[0])
        x, _ = self.layers.scan(lambda block, x, _: (block(x, segments), None), x)
        if not self.cut.last:
            return {"hidden": x.reshape(batch, -1, *x.shape[1:])}
        x = constrain(x[:, : self.config.tokens_per_image], *RESIDUAL, "embed")
        if self.projector is not None:
            with scope("projector"):
                x = self.projector(x, wanted=SEQUENCE)
        x = constrain(x, *SEQUENCE, "embed").reshape(batch, -1, x.shape[-1])
        return {"tokens": constrain(x, *SEQUENCE, "embed")}

    @scope("patch_embedding")
    def _embed(self, images: Float[Array, "B I H W C"]) -> Float[Array, "B*I R D"]:
        config = self.config
        check_images(images, config.image_size, config.channels, owner="ClipEncoder")
        patches = image_patches(images.astype(self.patch.dtype), config.patch_size)
        rest = config.rows_per_image - config.tokens_per_image
        # Rows without a patch are zeros, and stay so: the map has no bias.
        patches = constrain(jnp.pad(patches, ((0, 0), (0, rest), (0, 0))), *RESIDUAL, "patch")
        (x,) = sharded_linear(patches, self.patch, given=RESIDUAL, wanted=RESIDUAL)
        positions, token = self.positions[...], self.class_token[...]
        added = [positions[1:], positions[:1] + token, jnp.zeros((rest - 1, config.width), positions.dtype)]
        return self.entry_norm(constrain(x + jnp.concatenate(added), *RESIDUAL, "embed"))

    def _segments(self, images: int) -> Int[Array, "B*I R"]:
        """0 for patches and the class token, 1 for padding."""
        padding = jnp.arange(self.config.rows_per_image) > self.config.tokens_per_image
        ids = jnp.broadcast_to(padding.astype(jnp.int32), (images, self.config.rows_per_image))
        return constrain(ids, *SEQUENCE)
