"""Configs of tiny language models that are unlike each other: which equal transformers, and why others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from tests.harness.models.arrays import with_arrays


class Odd(NamedTuple):
    """Settings for transformers' config class; `refused` is a pattern of the message, None for equal logits."""

    settings: dict[str, Any]
    refused: str | None = None
    family: str | None = None


SIZES = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 36, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA = {"model_type": "llama", **SIZES}
QWEN3 = {"model_type": "qwen3", **SIZES, "head_dim": 10}
EXPERTS = {"moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 2}
QWEN3_MOE = {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "head_dim": 6}
HYBRID = {
    "model_type": "nemotron_h", "vocab_size": 61, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 28, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2,
    "ssm_state_size": 6, "conv_kernel": 4, "chunk_size": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 10, "moe_shared_expert_intermediate_size": 12,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
}  # fmt: skip


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def quantized(method: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **more}}


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
SHORT = {"factor": 4.0, "original_max_position_embeddings": 8}

CONFIGS: dict[str, Odd] = {
    "llama": Odd(LLAMA),
    "llama, one key head": Odd({**LLAMA, "num_key_value_heads": 1}),
    "llama, a key head each": Odd({**LLAMA, "num_key_value_heads": 4}),
    "llama, wide heads": Odd({**LLAMA, "head_dim": 14, "rms_norm_eps": 1e-3}),
    "llama, tied": Odd({**LLAMA, "tie_word_embeddings": True, "vocab_size": 67}),
    "llama, theta": Odd({**LLAMA, "rope_theta": 300.0, "max_position_embeddings": 16}),
    "llama, rope llama3": Odd({**LLAMA, **rope("llama3", **LLAMA_3)}),
    "llama, sliced for tensor parallelism": Odd({**LLAMA, "pretraining_tp": 2, "attention_dropout": 0.0}),
    "llama, other dtype": Odd({**LLAMA, "dtype": "bfloat16"}),
    "qwen3": Odd(QWEN3),
    "qwen3, tied": Odd({**QWEN3, "tie_word_embeddings": True, "num_key_value_heads": 1, **rope("default")}),
    "qwen3, windows turned off": Odd({**QWEN3, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3_moe": Odd({**QWEN3_MOE, "norm_topk_prob": True}),
    "qwen3_moe, unnormalized": Odd({**QWEN3_MOE, "num_experts_per_tok": 3, "output_router_logits": True}),
    "mistral as llama": Odd({"model_type": "mistral", **SIZES, "sliding_window": None}, family="llama"),
    # ── rope ──
    "llama, rope linear": Odd({**LLAMA, **rope("linear", factor=2.0)}, "rope_type = 'linear' is not supported"),
    "llama, rope dynamic": Odd({**LLAMA, **rope("dynamic", factor=2.0)}, "rope_type = 'dynamic' is not supported"),
    "llama, rope yarn": Odd({**LLAMA, **rope("yarn", **SHORT)}, "rope_type = 'yarn' is not supported"),
    "llama, rope longrope": Odd(
        {**LLAMA, **rope("longrope", **SHORT, short_factor=[1.0] * 3, long_factor=[2.0] * 3)},
        "rope_type = 'longrope' is not supported",
    ),
    "llama, partial rotary": Odd(
        {**LLAMA, **rope("default", partial_rotary_factor=0.5)}, "partial_rotary_factor = 0.5 is not supported"
    ),
    # ── layers ──
    "llama, biases of attention": Odd({**LLAMA, "attention_bias": True}, "attention_bias = True is not supported"),
    "llama, biases of the mlp": Odd({**LLAMA, "mlp_bias": True}, "mlp_bias = True is not supported"),
    "llama, gelu": Odd({**LLAMA, "hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
    "qwen3, windows": Odd(
        {**QWEN3, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "use_sliding_window = True is not supported",
    ),
    "qwen3_moe, every second layer": Odd({**QWEN3_MOE, "decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
    "qwen3_moe, a dense layer": Odd({**QWEN3_MOE, "mlp_only_layers": [0]}, r"mlp_only_layers = \[0\]"),
    "nemotron_h, groups of experts": Odd({**HYBRID, "n_group": 2, "topk_group": 1}, "n_group = 2 is not supported"),
    "nemotron_h, latent experts": Odd({**HYBRID, "moe_latent_size": 16}, "moe_latent_size = 16 is not supported"),
    "nemotron_h, limited steps": Odd({**HYBRID, "time_step_limit": [0.01, 1.0]}, "time_step_limit = "),
    # ── other families, by their own name and under that of Llama ──
    "mistral, windows": Odd(
        {"model_type": "mistral", **SIZES, "sliding_window": 4}, "sliding_window = 4 is not known", "llama"
    ),
    "granite": Odd({"model_type": "granite", **SIZES}, "model_type 'granite'"),
    "granite as llama": Odd(
        {"model_type": "granite", **SIZES, "logits_scaling": 3.0, "residual_multiplier": 0.5},
        "logits_scaling = 3.0, residual_multiplier = 0.5 is not known",
        "llama",
    ),
    "cohere as llama": Odd({"model_type": "cohere", **SIZES}, "layer_norm_eps = 1e-05, logit_scale", "llama"),
    "gemma2 as llama": Odd({"model_type": "gemma2", **SIZES, "head_dim": 6}, "final_logit_softcapping = 30.0", "llama"),
    "qwen2 as llama": Odd({"model_type": "qwen2", **SIZES}, "use_sliding_window = False is not known", "llama"),
    "smollm3 as llama": Odd({"model_type": "smollm3", **SIZES}, "no_rope_layers = ", "llama"),
    "phi3 as llama": Odd({"model_type": "phi3", **SIZES}, "embd_pdrop = 0.0.* is not known", "llama"),
    "olmo as llama": Odd({"model_type": "olmo", **SIZES, "clip_qkv": 1.0}, "clip_qkv = 1.0 is not known", "llama"),
    "olmo2 as qwen3": Odd({"model_type": "olmo2", **SIZES}, "input_layernorm", "qwen3"),
    "mixtral": Odd({"model_type": "mixtral", **SIZES}, "model_type 'mixtral'"),
    "mixtral as qwen3": Odd(
        {"model_type": "mixtral", **SIZES, "num_local_experts": 4}, "lacks moe_intermediate_size|is not known", "qwen3"
    ),
    "gpt2": Odd({"model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 1, "n_head": 2}, "model_type 'gpt2'"),
    # ── what a config says of the weights ──
    "bitsandbytes": Odd({**LLAMA, **quantized("bitsandbytes", load_in_8bit=True)}, "quant_method is 'bitsandbytes'"),
    "gptq": Odd({**LLAMA, **quantized("gptq", bits=4)}, "quant_method is 'gptq'"),
    "awq": Odd({**LLAMA, **quantized("awq", bits=4)}, "quant_method is 'awq'"),
    "compressed-tensors": Odd({**LLAMA, **quantized("compressed-tensors")}, "quant_method is 'compressed-tensors'"),
}


def tokens() -> np.ndarray:
    """Two prompts of an odd length, [2, 13]."""
    return np.random.default_rng(2).integers(3, 61, (2, 13))


def our_logits(checkpoint: HuggingFaceCheckpoint, tokens: np.ndarray) -> np.ndarray:
    """Return logits [B, V] of the last position, by the arrays of a checkpoint in float32."""
    shell = checkpoint.family.module("llm", checkpoint.configs)
    arrays = {
        path: jnp.asarray(checkpoint.read("llm", path, tuple(slice(0, size) for size in info.shape)), jnp.float32)
        for path, info in checkpoint.infos("llm").items()
    }
    assert arrays.keys() == arrays_by_path(shell).keys()
    assert not checkpoint.unexpected(), checkpoint.unexpected()
    model = with_arrays(shell, arrays)
    cache = model.init_cache(*tokens.shape, jnp.float32)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(model.decode(cache, positions=positions, tokens=tokens)[0]["logits"])


def stored(path: Path) -> dict[str, dict[str, Any]]:
    """{name: config.json as transformers writes it} of a file that `make_odd_configs.py` made."""
    return json.loads(path.read_text())


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by name, the same wherever they are made: kernels that keep the size of what they map, norms around 1."""
    random = np.random.default_rng(5)
    made = {}
    for name, shape in sorted(shapes.items()):
        noise = random.normal(size=shape)
        scale = 0.5 if "embed" in name else shape[-1] ** -0.5
        made[name] = (1 + 0.2 * noise if "norm" in name else scale * noise).astype(np.float32)
    return made
