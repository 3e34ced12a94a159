"""Sizes of the vision transformer, `hetjax.models.vit`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hetjax.models.checks import check_divides, check_positive


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

    type: Literal["vit"] = dataclasses.field(default="vit", compare=False)
    """Kind of the encoder; that of a YAML which says none."""

    def __post_init__(self):
        check_positive(self)
        check_divides(self, "patch_size", "image_size")
        check_divides(self, "heads", "width")

    @property
    def tokens_per_image(self) -> int:
        """Number of patches of an image, each of which becomes a token."""
        return (self.image_size // self.patch_size) ** 2
