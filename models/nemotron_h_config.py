"""Sizes of a hybrid language model of the Nemotron-H family (NVIDIA 2025, arXiv 2504.03624)."""

from __future__ import annotations

import dataclasses

from hetjax.models.checks import check_divides, check_positive
from hetjax.models.errors import ModelError
from hetjax.models.parts.mamba import MambaConfig
from hetjax.models.parts.moe import MoEConfig

KINDS = {"M": "Mamba-2", "*": "attention", "E": "mixture of experts", "-": "MLP"}
"""The letters of a pattern."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NemotronHConfig:
    """Sizes of a hybrid language model."""

    pattern: str
    """One letter a layer: M for Mamba-2, * for attention, E for a mixture of experts, - for an MLP."""
    vocab_size: int
    """Number of token ids."""
    width: int
    """Width of the residual stream."""
    heads: int = 1
    """Query heads of an attention layer."""
    kv_heads: int = 1
    """Key and value heads of an attention layer; divides heads."""
    head_dim: int = 1
    """Width of one head of an attention layer."""
    mamba: MambaConfig | None = None
    """Sizes of a Mamba-2 layer; null where the pattern has no M."""
    experts: MoEConfig | None = None
    """The mixture of experts of an E layer; null where the pattern has no E."""
    expert_width: int = 0
    """Hidden width of each routed expert; 0 where the pattern has no E."""
    mlp_width: int = 0
    """Hidden width of an MLP layer; 0 where the pattern has no -."""
    norm_epsilon: float = 1e-5
    """Added to the mean square in every RMSNorm of the residual stream."""
    tie_embeddings: bool = False
    """Whether the head is the token embedding, transposed; such a model cannot be cut into pipeline stages."""

    def __post_init__(self):
        unknown = sorted(set(self.pattern) - set(KINDS))
        if unknown or not self.pattern:
            known = ", ".join(f"{letter} ({kind})" for letter, kind in KINDS.items())
            raise ModelError(
                f"NemotronHConfig: pattern {self.pattern!r} has {', '.join(unknown) or 'no letter'}; use {known}"
            )
        check_positive(self, ("vocab_size", "width", "heads", "kv_heads", "head_dim", "norm_epsilon"))
        check_divides(self, "kv_heads", "heads")
        for letter, names in (("M", ("mamba",)), ("E", ("experts", "expert_width")), ("-", ("mlp_width",))):
            for name in names:
                if letter in self.pattern and not getattr(self, name):
                    raise ModelError(
                        f"NemotronHConfig: the pattern has {letter} ({KINDS[letter]}), but {name} is "
                        f"{getattr(self, name)}; give it"
                    )

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.pattern)

    @property
    def has_experts(self) -> bool:
        """Whether some layers are mixtures of experts."""
        return "E" in self.pattern
