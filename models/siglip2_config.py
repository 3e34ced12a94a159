"""Sizes of SigLIP 2's vision tower."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hetjax.models.checks import check_divides, check_positive, check_projector
from hetjax.models.errors import ModelError
from hetjax.models.patch_rows import PatchRows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Siglip2Config:
    """Sizes of a SigLIP 2 vision tower."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
    channels: int = 3
    """Colour channels of an image."""
    image_size: int | None = None
    """Height and width of every image, in pixels; null for images of any size, packed as patches (NaFlex)."""
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

    type: Literal["siglip2"] | None = dataclasses.field(default=None, compare=False)
    """Kind of the encoder, which a YAML has to say: its other settings may be those of another kind, too."""

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
    def tokens_per_image(self) -> int:
        """Number of patches of an image of one size, each of which becomes a token."""
        return self.position_side**2

    @property
    def image_rows(self) -> PatchRows:
        """How images of any size become patch rows."""
        return PatchRows(patch_size=self.patch_size, channels_first=False)
