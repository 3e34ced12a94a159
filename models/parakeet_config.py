"""Sizes of a Parakeet encoder."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from hetjax.models.checks import check_positive, check_projector
from hetjax.models.errors import ModelError
from hetjax.models.parts.audio_clips import HALVINGS

BatchNormMode = Literal["eval", "train"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParakeetConfig:
    """Sizes of an audio encoder, and how its batch norms work; the defaults are those of Parakeet 0.6B."""

    width: int = 1024
    """Width of the residual stream."""
    layers: int = 24
    """Number of FastConformer layers."""
    heads: int = 8
    """Attention heads of each layer; divides width."""
    mlp_width: int = 4096
    """Hidden width of the two feed-forward networks of each layer."""
    conv_taps: int = 9
    """Taps of each layer's convolution over time; odd."""
    mel_bins: int = 128
    """Mel bins of a frame; a multiple of 8, for they are halved three times."""
    subsampling_channels: int = 256
    """Channels of the convolutions ahead of the layers."""
    scale_input: bool = False
    """Whether what enters the layers is multiplied by the root of width."""
    batch_norm: BatchNormMode = "eval"
    """Statistics that training normalizes with: "eval", the running ones, which stay; "train", those of all valid
    tokens of a microbatch, which move the running ones. Inference always takes the running ones."""
    batch_norm_momentum: float = 0.1
    """Share of a microbatch's statistics in the running ones; above 0, at most 1."""
    projector_width: int | None = None
    """Hidden width of the projector to the language model; null for none."""
    output_width: int | None = None
    """Width of the language model that takes the tokens; null without a projector."""
    norm_epsilon: float = 1e-5
    """Added to the variance in every norm."""

    type: Literal["parakeet"] | None = dataclasses.field(default=None, compare=False)
    """Kind of the encoder, which a YAML has to say: its other settings may be those of another kind, too."""

    def __post_init__(self):
        check_positive(self)
        if self.width % (2 * self.heads):
            raise ModelError(
                f"ParakeetConfig: width % (2 * heads) = {self.width} % {2 * self.heads} must be 0, since heads share "
                "the width and sines and cosines the positions; change either of the two"
            )
        if self.conv_taps % 2 == 0:
            raise ModelError(f"ParakeetConfig: conv_taps = {self.conv_taps} must be odd, to have a middle")
        if self.mel_bins % 2**HALVINGS:
            raise ModelError(f"ParakeetConfig: mel_bins % 8 = {self.mel_bins} % 8 must be 0; choose a multiple of 8")
        if self.batch_norm not in get_args(BatchNormMode):
            raise ModelError(f"ParakeetConfig: batch_norm is {self.batch_norm!r}; give eval or train")
        if self.batch_norm_momentum > 1:
            raise ModelError(f"ParakeetConfig: batch_norm_momentum = {self.batch_norm_momentum} must be at most 1")
        check_projector(self)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads
