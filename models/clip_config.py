"""Sizes of CLIP's vision tower."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hetjax.models.checks import check_divides, check_positive, check_projector

ROW_MULTIPLE = 16
"""The rows of an image are a multiple of it, so that `tensor` and `context` can split them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Sizes of a CLIP vision tower whose patch features a language model takes; defaults are those of ViT-L/14-336."""

    image_size: int = 336
    """Height and width of every image, in pixels."""
    patch_size: int = 14
    """Side of a square patch, in pixels; divides image_size."""
    channels: int = 3
    """Colour channels of an image."""
    width: int = 1024
    """Width of the residual stream."""
    layers: int = 23
    """Number of transformer layers that are computed: LLaVA takes the features of the last layer but one, of 24."""
    heads: int = 16
    """Attention heads of each layer; divides width."""
    mlp_width: int = 4096
    """Hidden width of each layer's MLP."""
    projector_width: int | None = None
    """Hidden width of the projector; null, as output_width, for the tower's features."""
    output_width: int | None = None
    """Width of the language model that takes the tokens."""
    norm_epsilon: float = 1e-5
    """Added to the variance in every LayerNorm."""

    type: Literal["clip"] | None = dataclasses.field(default=None, compare=False)
    """Kind of the encoder, which a YAML has to say: its other settings may be those of another kind, too."""

    def __post_init__(self):
        check_positive(self)
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "heads", "width")
        check_projector(self)

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch, in the order row, column, channel."""
        return self.channels * self.patch_size**2

    @property
    def tokens_per_image(self) -> int:
        """Number of patches of an image, each of which becomes a token; the class token does not."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def rows_per_image(self) -> int:
        """Rows of an image in the layers: patches, the class token, and padding up to a multiple of 16."""
        return -(-(self.tokens_per_image + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
