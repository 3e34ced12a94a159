"""LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744): CLIP ViT-L/14 at 336 pixels, a projector of two layers, Vicuna-1.5."""

from __future__ import annotations

from hetjax.models.clip_config import ClipConfig
from hetjax.models.components import ComponentConfig
from hetjax.models.decoder_config import DecoderConfig


def _llava(*, width: int, layers: int, heads: int, mlp_width: int) -> dict[str, ComponentConfig]:
    """The vocabulary is Llama 2's with `<image>`, padding, and unused ids up to a multiple of 64."""
    return {
        "vision": ClipConfig(projector_width=width, output_width=width),
        "llm": DecoderConfig(
            vocab_size=32064, width=width, layers=layers, heads=heads, kv_heads=heads, head_dim=128,
            mlp_width=mlp_width,
        ),
    }  # fmt: skip


LLAVA_7B = _llava(width=4096, layers=32, heads=32, mlp_width=11008)
LLAVA_13B = _llava(width=5120, layers=40, heads=40, mlp_width=13824)
