"""Qwen3-VL (Qwen team 2025, arXiv 2511.21631), dense with 8 B and with experts, 3 of 30 B active."""

from __future__ import annotations

from hetjax.models.components import ComponentConfig
from hetjax.models.parts.moe import MoEConfig
from hetjax.models.qwen3_vision_config import Qwen3VisionConfig
from hetjax.models.qwen3_vl_config import Qwen3VlConfig

QWEN3_VL_8B: dict[str, ComponentConfig] = {
    "vision": Qwen3VisionConfig(output_width=4096),
    "llm": Qwen3VlConfig(
        vocab_size=151936, width=4096, layers=36, heads=32, kv_heads=8, head_dim=128, mlp_width=12288, rope_theta=5e6,
        norm_epsilon=1e-6, rope_sections=(24, 20, 20),
    ),
}  # fmt: skip

QWEN3_VL_30B_A3B: dict[str, ComponentConfig] = {
    "vision": Qwen3VisionConfig(output_width=2048),
    "llm": Qwen3VlConfig(
        vocab_size=151936, width=2048, layers=48, heads=32, kv_heads=4, head_dim=128, mlp_width=768, rope_theta=5e6,
        norm_epsilon=1e-6, rope_sections=(24, 20, 20), experts=MoEConfig(count=128, top_k=8),
    ),
}  # fmt: skip
