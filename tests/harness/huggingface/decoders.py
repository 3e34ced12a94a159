"""Tiny checkpoints of decoders as config.json describes them, and what our model computes with such weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models import DecoderConfig, LanguageModel
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.llama import llama_config, llama_entries, llama_hf_config
from hetjax.models.huggingface.qwen3 import qwen3_config, qwen3_entries, qwen3_hf_config
from tests.harness.huggingface.cached_logits import cached_logits
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 36, "rms_norm_eps": 1e-5,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
LLAMA_3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES},
    "llama-3": {
        "model_type": "llama", **SIZES, "head_dim": 10, "rope_theta": 500.0, "rope_scaling": LLAMA_3,
        "tie_word_embeddings": True,
    },
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 10, "rope_theta": 1e6},
    "qwen3-tied": {
        "model_type": "qwen3", **SIZES, "head_dim": 8, "num_key_value_heads": 1, "tie_word_embeddings": True,
    },
    "qwen3-moe": {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "head_dim": 10, "norm_topk_prob": True},
    "qwen3-moe-unnormalized": {
        "model_type": "qwen3_moe", **SIZES, **EXPERTS, "head_dim": 6, "norm_topk_prob": False, "num_experts_per_tok": 3,
    },
}  # fmt: skip


def inputs() -> dict[str, np.ndarray]:
    """Tokens and labels of transformers' kind, for two samples of an odd length; some positions have no label."""
    random = np.random.default_rng(2)
    tokens = random.integers(0, SIZES["vocab_size"], (2, 13))
    labels = np.where(random.random(tokens.shape) < 0.2, -100, tokens)
    return {"tokens": tokens, "labels": labels}


def config_of(hf: dict[str, Any]) -> DecoderConfig:
    return (llama_config if hf["model_type"] == "llama" else qwen3_config)(hf)


def entries_of(hf: dict[str, Any], config: DecoderConfig, **options) -> list[Entry]:
    return (llama_entries if hf["model_type"] == "llama" else qwen3_entries)(config, **options)


def hf_config_of(hf: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    return (llama_hf_config if hf["model_type"] == "llama" else qwen3_hf_config)(config)


def model_of(hf: dict[str, Any], weights: dict[str, np.ndarray]) -> LanguageModel:
    """Our model with a checkpoint's tensors, in their dtype."""
    config = config_of(hf)
    shell = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    arrays = read_arrays(entries_of(hf, config), weights, arrays_by_path(shell))
    return with_arrays(shell, {path: jnp.asarray(array) for path, array in arrays.items()})


def loss_and_gradients(hf: dict[str, Any], weights, given) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The mean loss over all labels, and gradients under the checkpoint's names."""
    definition, state = nnx.split(model_of(hf, weights))
    labels = np.pad(given["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    dtype = next(iter(weights.values())).dtype
    loss_weights = (labels >= 0).astype(dtype) / (labels >= 0).sum()

    @jax.jit
    @jax.value_and_grad
    def run(state):
        model = nnx.merge(definition, state)
        return model(tokens=given["tokens"], labels=labels, loss_weights=loss_weights)["loss"]

    loss, gradients = run(state)
    config = config_of(hf)
    by_path = jax.device_get(arrays_by_path(nnx.merge(definition, gradients)))
    return np.asarray(loss), write_tensors(entries_of(hf, config), by_path)


def logits(hf: dict[str, Any], weights, tokens: np.ndarray, *, prompt: int) -> np.ndarray:
    """Return logits [B, S, V] by way of the cache, as `cached_logits` does."""
    dtype = next(iter(weights.values())).dtype
    return cached_logits(model_of(hf, weights), tokens, prompt=prompt, dtype=dtype)
