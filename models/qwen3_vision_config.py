"""Sizes of Qwen3-VL's vision tower."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hetjax.models.checks import check_divides, check_positive
from hetjax.models.errors import ModelError
from hetjax.models.patch_rows import PatchRows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VisionConfig:
    """Sizes of Qwen3-VL's vision tower; defaults are those of its larger models."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
    channels: int = 3
    """Colour channels of an image."""
    tubelet: int = 2
    """Frames that a patch of a video spans; an image is a frame that stands still for as many."""
    width: int = 1152
    """Width of the residual stream."""
    layers: int = 27
    """Number of transformer layers."""
    heads: int = 16
    """Attention heads of each layer; 4 * heads divides width, for rows and columns rotate a half of each head."""
    mlp_width: int = 4304
    """Hidden width of each layer's MLP."""
    position_side: int = 48
    """Side of the square grid of learned positions."""
    merge: int = 2
    """Side of the square of neighbouring patches that become one token."""
    deepstack: tuple[int, ...] = (8, 16, 24)
    """Layers, counted from 0, behind which tokens of a depth of their own are made, for as many layers of the language
    model."""
    output_width: int
    """Width of the language model that takes the tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    norm_epsilon: float = 1e-6
    """Added to the variance in every LayerNorm."""

    type: Literal["qwen3_vl"] | None = dataclasses.field(default=None, compare=False)
    """Kind of the encoder, which a YAML has to say: its other settings may be those of another kind, too."""

    def __post_init__(self):
        check_positive(self)
        check_divides(self, "heads", "width")
        if self.width // self.heads % 4:
            raise ModelError(
                f"Qwen3VisionConfig: width / heads = {self.width} / {self.heads} must be a multiple of 4; change either"
            )
        object.__setattr__(self, "deepstack", tuple(self.deepstack))  # a YAML has a list
        in_order = list(self.deepstack) == sorted({*self.deepstack} & {*range(self.layers)})
        if not in_order or len(self.deepstack) > 3:
            raise ModelError(
                f"Qwen3VisionConfig: deepstack = {self.deepstack} must be three or fewer of the layers 0 to "
                f"{self.layers - 1}, in order"
            )

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch of an image, in the order channel, row, column."""
        return self.channels * self.patch_size**2

    @property
    def rows_per_token(self) -> int:
        """Patch rows that make one token: those of one square of patches."""
        return self.merge**2

    @property
    def image_rows(self) -> PatchRows:
        """How images become patch rows."""
        return PatchRows(patch_size=self.patch_size, merge=self.merge)

    @property
    def video_rows(self) -> PatchRows:
        """How videos become patch rows."""
        return dataclasses.replace(self.image_rows, frames=self.tubelet)

    @property
    def video_lines(self) -> str:
        """What a prompt has ahead of each tubelet: its time in seconds."""
        return "seconds"

    @property
    def deepstack_ports(self) -> tuple[str, ...]:
        """The ports of the tokens of each depth, here and in the language model."""
        return tuple(f"deepstack_{depth}" for depth in range(len(self.deepstack)))
