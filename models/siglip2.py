"""SigLIP 2's vision tower: images of one size, or packed patches of images of any size (Tschannen et al. 2025)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, SEQUENCE, constrain, named
from hetjax.models.encoder import Encoder
from hetjax.models.errors import ModelError
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.image_patches import check_images, image_patches
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.mlp import GeluMLP
from hetjax.models.parts.norms import LayerNorm
from hetjax.models.parts.position_grid import resized_positions
from hetjax.models.parts.vision_block import vision_layer_cost, vision_layers
from hetjax.models.scopes import scope
from hetjax.models.siglip2_config import Siglip2Config
from hetjax.models.stages import StageCut, check_inputs

# B batch · I images a sample · H W height and width in pixels · C channels · N patches of a sample, or of an image
# F numbers of a patch · D width of the encoder · E width of the language model


class Siglip2Encoder(Encoder):
    """Patches, positions, `layers` blocks, a final norm and, if the config says so, a projector of two layers.

    Every image is a sequence of its own for attention. The tower's pooling head is left out: a language model takes
    its tokens. The encoder computes in the dtype of its weights.
    """

    first_stage, last_stage = ("patch", "positions"), ("norm", "projector")

    def __init__(self, config: Siglip2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        width = config.width
        self.patch = Linear({"patch": config.patch_dim}, {"embed": width}, bias=True, rngs=rngs)
        positions = named(nnx.initializers.normal(width**-0.5), None, "width")
        self.positions = nnx.Param(positions(rngs.params(), (config.position_side**2, width), jnp.float32))
        self.layers = vision_layers(config, qkv_bias=True, gelu="tanh", rngs=rngs)
        self.norm = LayerNorm(width, epsilon=config.norm_epsilon, rngs=rngs)
        projected = config.projector_width is not None
        self.projector = GeluMLP(width, config.projector_width, config.output_width, rngs=rngs) if projected else None

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        if self.config.image_size is not None:
            return ("images",) if self.cut.first else ("hidden",)
        return ("patches", "places", "segments") if self.cut.first else ("hidden", "segments")

    @property
    def port_dims(self) -> dict[str, tuple[str | None, ...]]:
        """The dims of the ports that run along the tokens."""
        images = (None,) if self.config.image_size is not None else ()
        return {"hidden": ("batch", *images, "residual_seq", "embed"), "tokens": (*SEQUENCE, "embed")}

    def multiplications(self) -> tuple[float, float, float]:
        """Return those of (patches and positions, each layer, the projector), a token."""
        config = self.config
        positions = config.position_side**2 if config.image_size is None else 0
        projector = (config.projector_width or 0) * (config.width + (config.output_width or 0))
        return (config.patch_dim + positions) * config.width, vision_layer_cost(config), projector

    def __call__(
        self,
        images: Float[Array, "B I H W C"] | None = None,
        patches: Float[Array, "B N F"] | None = None,
        places: Int[Array, "B N 4"] | None = None,
        segments: Int[Array, "B N"] | None = None,
        hidden: Float[Array, "B *I N D"] | None = None,
    ) -> dict[str, Float[Array, "B ..."]]:
        """Return {"tokens": [B, tokens, E]} from the whole encoder and its last stage, {"hidden"} from others.

        Images of one size come as `images`, and have I * N tokens a sample. Images of any size come as patches, each a
        token: `places` has a patch's (row, column, height, width) in the grid of its image, and `segments` holds an
        id an image and another for padding, whose tokens are finite and mean nothing. Without a projector, E is D.
        Raises ModelError where inputs lack or shapes do not fit.
        """
        given = dict(images=images, patches=patches, places=places, segments=segments, hidden=hidden)
        check_inputs(self, self.input_ports, given)
        if not self.cut.first:
            x = hidden.reshape(-1, *hidden.shape[-2:])
        else:
            x = self._embed_patches(patches, places) if images is None else self._embed_images(images)
        batch = next(array for array in given.values() if array is not None).shape[0]
        x, _ = self.layers.scan(lambda block, x, _: (block(x, segments), None), constrain(x, *RESIDUAL, "embed"))
        if not self.cut.last:
            return {"hidden": x if segments is not None else x.reshape(batch, -1, *x.shape[1:])}
        x = self.norm(x)
        if self.projector is not None:
            with scope("projector"):
                x = self.projector(x, wanted=SEQUENCE)
        x = constrain(x, *SEQUENCE, "embed").reshape(batch, -1, x.shape[-1])
        return {"tokens": constrain(x, *SEQUENCE, "embed")}

    @scope("patch_embedding")
    def _embed_images(self, images: Float[Array, "B I H W C"]) -> Float[Array, "B*I N D"]:
        check_images(images, self.config.image_size, self.config.channels, owner="Siglip2Encoder")
        # What is left of an image behind its last whole patch is not seen.
        whole = self.config.position_side * self.config.patch_size
        patches = image_patches(images[:, :, :whole, :whole].astype(self.patch.dtype), self.config.patch_size)
        return self._project(patches) + self.positions[...]

    @scope("patch_embedding")
    def _embed_patches(self, patches: Float[Array, "B N F"], places: Int[Array, "B N 4"]) -> Float[Array, "B N D"]:
        if patches.shape != (*places.shape[:2], self.config.patch_dim):
            raise ModelError(
                f"Siglip2Encoder: patches and places have the shapes {patches.shape} and {places.shape}; give "
                f"[batch, patches, {self.config.patch_dim}] and [batch, patches, 4]"
            )
        return self._project(patches.astype(self.patch.dtype)) + resized_positions(self.positions[...], places)

    def _project(self, patches: Float[Array, "images N F"]) -> Float[Array, "images N D"]:
        patches = constrain(patches, *RESIDUAL, "patch")
        return sharded_linear(patches, self.patch, given=RESIDUAL, wanted=RESIDUAL)[0]
