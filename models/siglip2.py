"""SigLIP 2's vision tower: images of one size, or of any size packed as rows of patches (Tschannen et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.checks import check_divides, check_positive, check_projector
from hetjax.models.dims import RESIDUAL, ROWS, constrain, named
from hetjax.models.errors import ModelError
from hetjax.models.parallel.sharded_linear import project
from hetjax.models.parts.image_patches import cut_images
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.mlp import GeluMLP
from hetjax.models.parts.norms import LayerNorm
from hetjax.models.parts.position_grid import resized_positions
from hetjax.models.parts.stack import Stack
from hetjax.models.parts.vision_block import VisionBlock
from hetjax.models.patch_rows import PatchRows
from hetjax.models.stages import LayerCosts, StageCut, check_inputs, cut_stage

# B batch · I images a sample · H W height and width in pixels · C channels · N rows of a sample, or tokens of an image
# F numbers of a patch · D width of the encoder · E width of the language model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Siglip2Config:
    """Sizes of a SigLIP 2 vision tower."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
    channels: int = 3
    """Colour channels of an image."""
    image_size: int | None = None
    """Height and width of every image, in pixels; null for images of any size, packed as rows of patches (NaFlex)."""
    position_side: int = 16
    """Side of the square grid of learned positions; with image_size, image_size // patch_size."""
    width: int
    """Width of the residual stream."""
    layers: int
    """Number of transformer layers."""
    heads: int
    """Attention heads of each layer; divides width."""
    mlp_width: int
    """Hidden width of each layer's MLP."""
    projector_width: int | None = None
    """Hidden width of the projector; null, as output_width, for the tower's features."""
    output_width: int | None = None
    """Width of the language model that takes the tokens."""
    norm_epsilon: float = 1e-6
    """Added to the variance in every LayerNorm."""

    def __post_init__(self):
        check_positive(self)
        check_divides(self, "heads", "width")
        if self.image_size is not None and self.image_size // self.patch_size != self.position_side:
            raise ModelError(
                f"Siglip2Config: image_size // patch_size = {self.image_size} // {self.patch_size} = "
                f"{self.image_size // self.patch_size}, but position_side = {self.position_side}; images of one size "
                "have a learned position for each patch"
            )
        check_projector(self)

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch, in the order row, column, channel."""
        return self.channels * self.patch_size**2

    @property
    def image_rows(self) -> PatchRows:
        """How images of any size become rows."""
        return PatchRows(patch_size=self.patch_size, channels_first=False)


class Siglip2Encoder(nnx.Module):
    """Patches, positions, `layers` blocks, a final norm and, if the config says so, a projector of two layers.

    Every image is a sequence of its own for attention. The tower's pooling head is left out: a language model takes
    its tokens. The encoder computes in the dtype of its weights.
    """

    def __init__(self, config: Siglip2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        width = config.width
        self.patch = Linear({"patch": config.patch_dim}, {"embed": width}, bias=True, rngs=rngs)
        positions = named(nnx.initializers.normal(width**-0.5), None, "width")
        self.positions = nnx.Param(positions(rngs.params(), (config.position_side**2, width), jnp.float32))
        self.layers = Stack(lambda layer_rngs: _block(config, layer_rngs), config.layers, rngs=rngs)
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
    def optional_ports(self) -> tuple[str, ...]:
        return ()

    @property
    def port_dims(self) -> dict[str, tuple[str | None, ...]]:
        """The dims of the ports that run along the tokens."""
        images = (None,) if self.config.image_size is not None else ()
        return {"hidden": ("batch", *images, "residual_seq", "embed"), "tokens": (*ROWS, "embed")}

    @property
    def independent_samples(self) -> bool:
        """No token of a sample sees another sample."""
        return True

    @property
    def layer_costs(self) -> LayerCosts:
        """Multiplications a row in products with weights, to cut stages of equal cost."""
        config = self.config
        layer = 4 * config.width**2 + 2 * config.width * config.mlp_width
        positions = config.position_side**2 if config.image_size is None else 0
        projector = (config.projector_width or 0) * (config.width + (config.output_width or 0))
        first = (config.patch_dim + positions) * config.width
        return LayerCosts(first=first, layers=(layer,) * config.layers, last=projector)

    def stage(self, index: int, count: int, layers: Sequence[int] | None = None) -> Siglip2Encoder:
        """Pipeline stage `index` of `count`: `hidden` passes between stages; see `hetjax.models.stages.cut_stage`."""
        return cut_stage(self, index, count, layers, first=("patch", "positions"), last=("norm", "projector"))

    def __call__(
        self,
        images: Float[Array, "B I H W C"] | None = None,
        patches: Float[Array, "B N F"] | None = None,
        places: Int[Array, "B N 4"] | None = None,
        segments: Int[Array, "B N"] | None = None,
        hidden: Float[Array, "B *I N D"] | None = None,
    ) -> dict[str, Float[Array, "B ..."]]:
        """The whole encoder, or its last stage, returns {"tokens": [B, tokens, E]}, others {"hidden"}.

        Images of one size come as `images`, and have I * N tokens a sample. Images of any size come as rows, each a
        token: `places` tells a patch's (row, column, height, width) in the grid of its image, and `segments` holds an
        id an image and another for padding, whose tokens are finite and mean nothing. Without a projector, E is D.
        Raises ModelError where inputs lack or shapes do not fit.
        """
        given = dict(images=images, patches=patches, places=places, segments=segments, hidden=hidden)
        check_inputs(self, self.input_ports, given)
        if not self.cut.first:
            x = hidden.reshape(-1, *hidden.shape[-2:])
        else:
            x = self._embed_rows(patches, places) if images is None else self._embed_images(images)
        batch = next(array for array in given.values() if array is not None).shape[0]
        x, _ = self.layers.scan(lambda block, x, _: (block(x, segments), None), constrain(x, *RESIDUAL, "embed"))
        if not self.cut.last:
            return {"hidden": x if segments is not None else x.reshape(batch, -1, *x.shape[1:])}
        x = self.norm(x)
        if self.projector is not None:
            x = self.projector(x, wanted=ROWS)
        x = constrain(x, *ROWS, "embed").reshape(batch, -1, x.shape[-1])
        return {"tokens": constrain(x, *ROWS, "embed")}

    def _embed_images(self, images: Float[Array, "B I H W C"]) -> Float[Array, "B*I N D"]:
        side, channels = self.config.image_size, self.config.channels
        if images.ndim != 5 or images.shape[2:] != (side, side, channels):
            raise ModelError(
                f"Siglip2Encoder: images have shape {images.shape}; give [batch, images, {side}, {side}, {channels}] "
                "as the config says"
            )
        # What is left of an image behind its last whole patch is not seen.
        whole = self.config.position_side * self.config.patch_size
        patches = cut_images(images[:, :, :whole, :whole].astype(self.patch.dtype), self.config.patch_size)
        return self._project(patches) + self.positions[...]

    def _embed_rows(self, patches: Float[Array, "B N F"], places: Int[Array, "B N 4"]) -> Float[Array, "B N D"]:
        if patches.shape != (*places.shape[:2], self.config.patch_dim):
            raise ModelError(
                f"Siglip2Encoder: patches and places have the shapes {patches.shape} and {places.shape}; give "
                f"[batch, rows, {self.config.patch_dim}] and [batch, rows, 4]"
            )
        return self._project(patches.astype(self.patch.dtype)) + resized_positions(self.positions[...], places)

    def _project(self, patches: Float[Array, "rows N F"]) -> Float[Array, "rows N D"]:
        return project(constrain(patches, *RESIDUAL, "patch"), self.patch, given=RESIDUAL, wanted=RESIDUAL)[0]


def _block(config: Siglip2Config, rngs: nnx.Rngs) -> VisionBlock:
    return VisionBlock(
        config.width,
        config.heads,
        config.mlp_width,
        norm_epsilon=config.norm_epsilon,
        qkv_bias=True,
        approximate_gelu=True,
        rngs=rngs,
    )
