"""Sizes and choices of the decoder, `hetjax.models.decoder`."""

from __future__ import annotations

import dataclasses

from hetjax.models.checks import check_divides, check_positive
from hetjax.models.errors import ModelError
from hetjax.models.parts.moe import MoEConfig
from hetjax.models.parts.rope import RopeScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a language model."""

    vocab_size: int
    """Number of token ids."""
    width: int
    """Width of the residual stream."""
    layers: int
    """Number of transformer layers."""
    heads: int
    """Query heads of each layer."""
    kv_heads: int
    """Key and value heads of each layer; divides heads."""
    head_dim: int
    """Width of one head; even, for the rotation works on pairs."""
    mlp_width: int
    """Hidden width of each layer's MLP, or of each of its experts."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    norm_epsilon: float = 1e-5
    """Added to the mean square in every RMSNorm."""
    experts: MoEConfig | None = None
    """A mixture of experts in the place of every layer's MLP; null for none."""
    rope_scaling: RopeScaling | None = None
    """Slower rotations for sequences longer than those of the first training; null for none."""
    query_key_norm: bool = False
    """An RMSNorm over each head of queries and of keys, before the rotation."""
    tie_embeddings: bool = False
    """The head is the embedding; then all layers are one pipeline stage."""

    def __post_init__(self):
        check_positive(self)
        check_divides(self, "kv_heads", "heads")
        if self.head_dim % 2:
            raise ModelError(f"DecoderConfig: head_dim % 2 = {self.head_dim} % 2 must be 0; choose an even head_dim")

    @property
    def has_experts(self) -> bool:
        """Whether layers have a mixture of experts."""
        return self.experts is not None
