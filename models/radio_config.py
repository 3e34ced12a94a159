"""Sizes of the RADIO vision encoder."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hetjax.models.checks import check_divides, check_positive, check_projector
from hetjax.models.errors import ModelError
from hetjax.models.patch_rows import PatchRows


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadioConfig:
    """Sizes of a RADIO encoder; what has a default is that of C-RADIOv4-H."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
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
    position_side: int = 128
    """Side of the square grid of learned positions; the longest side of an image, in patches, that it was made for."""
    prefix_tokens: int = 10
    """Learned tokens before the patches of each image: of the teachers' classes, and registers."""
    tubelet: int | None = 2
    """Frames, two or more, that a patch of a video spans, with an embedder of its own; null for images alone."""
    tubelet_rows: int | None = None
    """Patch rows (hetjax.models.patch_rows) of every tubelet, with padding at its end: attention is computed tubelet by
    tubelet then, at a cost that grows with their number alone. Null for as many as each needs, and attention over all
    patch rows of a sample, masked."""
    merge: int = 2
    """Side of the square of neighbouring patches that become one token."""
    projector_width: int | None = None
    """Hidden width of the projector; null, as output_width, for the features of all patch rows as they are."""
    output_width: int | None = None
    """Width of the language model that takes the tokens."""
    norm_epsilon: float = 1e-6
    """Added to the variance in every LayerNorm."""
    projector_norm_epsilon: float = 1e-5
    """Added to the mean square in the projector's RMSNorm."""
    video_pruning_rate: float = 0.0
    """Share of a video's tokens to drop, those most like the ones before them; 0 keeps all."""

    type: Literal["radio"] | None = dataclasses.field(default=None, compare=False)
    """Kind of the encoder, which a YAML has to say: its other settings may be those of another kind, too."""

    def __post_init__(self):
        check_positive(self, [name for name in self.__dataclass_fields__ if name != "video_pruning_rate"])
        if self.tubelet == 1:
            raise ModelError("RadioConfig: tubelet = 1 is an image; give 2 or more frames, or null for images alone")
        if self.tubelet_rows is not None and (
            self.tubelet is None or self.tubelet_rows <= self.prefix_rows or self.tubelet_rows % self.rows_per_token
        ):
            raise ModelError(
                f"RadioConfig: tubelet_rows = {self.tubelet_rows} with tubelet = {self.tubelet}; give a multiple of "
                f"merge² = {self.rows_per_token} above {self.prefix_rows}, the patch rows before the patches, or null"
            )
        check_divides(self, "heads", "width")
        check_projector(self)
        if not 0 <= self.video_pruning_rate < 1:
            raise ModelError(
                f"RadioConfig: video_pruning_rate = {self.video_pruning_rate} must be 0 or more and below 1"
            )
        if self.video_pruning_rate and (self.tubelet is None or self.projector_width is None):
            raise ModelError(
                f"RadioConfig: video_pruning_rate = {self.video_pruning_rate} drops projected video tokens, but "
                f"tubelet = {self.tubelet} and projector_width = {self.projector_width}; give both, or a rate of 0"
            )

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch of an image, in the order channel, row, column."""
        return self.channels * self.patch_size**2

    @property
    def video_patch_dim(self) -> int:
        """Numbers of a patch of a video, in the order frame, channel, row, column."""
        return (self.tubelet or 0) * self.patch_dim

    @property
    def rows_per_token(self) -> int:
        """Patch rows that make one token: those of one square of patches."""
        return self.merge**2

    @property
    def prefix_rows(self) -> int:
        """Patch rows before the patches of each image."""
        return self.image_rows.prefix_rows

    @property
    def image_rows(self) -> PatchRows:
        """How images become patch rows."""
        return PatchRows(patch_size=self.patch_size, merge=self.merge, prefix_tokens=self.prefix_tokens)

    @property
    def video_rows(self) -> PatchRows:
        """How videos become patch rows. Raises ModelError for an encoder of images alone."""
        if self.tubelet is None:
            raise ModelError("RadioConfig: tubelet = None takes images alone; say how many frames a patch spans")
        return dataclasses.replace(self.image_rows, frames=self.tubelet, rows_per_image=self.tubelet_rows)
