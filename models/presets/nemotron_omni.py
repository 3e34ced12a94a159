"""Nemotron 3 Nano Omni (NVIDIA 2026, arXiv 2604.24954) at full size, at about 300 M parameters, and tiny.

Text, images, video and audio in, text out: a hybrid language model of Mamba-2, attention and mixtures of
experts, C-RADIOv4-H for images and video, Parakeet's FastConformer for audio.
"""

from __future__ import annotations

from hetjax.models.components import ComponentConfig
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.parakeet_config import ParakeetConfig
from hetjax.models.parts.mamba.config import MambaConfig
from hetjax.models.parts.moe import MoEConfig
from hetjax.models.radio_config import RadioConfig

PATTERN = "MEMEM*E" * 5 + "MEMEMEM*E" + "MEMEMEME"
"""The 52 layers of the full size: 23 Mamba-2, 23 mixtures of experts, 6 attentions."""


def _experts(count: int, top_k: int, shared_width: int) -> MoEConfig:
    """Sigmoid scores with a correction bias, which moves by 1e-3 a step in training (Megatron-LM's default)."""
    return MoEConfig(
        count=count,
        top_k=top_k,
        activation="relu2",
        shared_width=shared_width,
        scores="sigmoid",
        factor=2.5,
        bias_rate=1e-3,
        balance_loss=1e-4,
    )


NANO_OMNI: dict[str, ComponentConfig] = {
    "vision": RadioConfig(
        width=1280, layers=32, heads=16, mlp_width=5120, projector_width=20480, output_width=2688,
    ),
    "audio": ParakeetConfig(projector_width=4096, output_width=2688),
    "llm": NemotronHConfig(
        pattern=PATTERN, vocab_size=131072, width=2688, heads=32, kv_heads=2, head_dim=128,
        mamba=MambaConfig(heads=64, head_dim=64, groups=8, state=128), experts=_experts(128, 6, 3712),
        expert_width=1856,
    ),
}  # fmt: skip

NANO_OMNI_300M: dict[str, ComponentConfig] = {
    "vision": RadioConfig(
        width=512, layers=12, heads=8, mlp_width=2048, position_side=64, projector_width=2048, output_width=768,
    ),
    "audio": ParakeetConfig(
        width=384, layers=8, heads=6, mlp_width=1536, subsampling_channels=128, projector_width=1024, output_width=768,
    ),
    "llm": NemotronHConfig(
        pattern="MEMEM*E" * 2, vocab_size=32768, width=768, heads=12, kv_heads=2, head_dim=64,
        mamba=MambaConfig(heads=24, head_dim=64, groups=8, state=64), experts=_experts(32, 4, 1024), expert_width=512,
    ),
}  # fmt: skip

NANO_OMNI_TINY: dict[str, ComponentConfig] = {
    "vision": RadioConfig(
        patch_size=4, width=32, layers=2, heads=4, mlp_width=64, position_side=16, projector_width=64,
        output_width=64,
    ),
    "audio": ParakeetConfig(
        width=32, layers=2, heads=4, mlp_width=64, mel_bins=16, subsampling_channels=8, projector_width=64,
        output_width=64,
    ),
    "llm": NemotronHConfig(
        pattern="MEM*E" + "ME", vocab_size=320, width=64, heads=4, kv_heads=2, head_dim=16,
        mamba=MambaConfig(heads=8, head_dim=8, groups=4, state=16, chunk=16), experts=_experts(8, 2, 64),
        expert_width=32,
    ),
}  # fmt: skip
