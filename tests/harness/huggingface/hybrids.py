"""Tiny checkpoints of Nemotron-H as config.json describes them, and what our model computes with such weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.nemotron_h import nemotron_h_config, nemotron_h_entries
from hetjax.models.nemotron_h import NemotronH
from hetjax.models.nemotron_h_config import NemotronHConfig
from tests.harness.huggingface.cached_logits import cached_logits
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 28, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 6,
    "conv_kernel": 4, "chunk_size": 4, "n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 10,
    "moe_shared_expert_intermediate_size": 12, "routed_scaling_factor": 2.5, "time_step_min": 0.02,
}  # fmt: skip
# The chunk and the conv kernel are no multiples of anything below, and lengths are odd.
CONFIGS: dict[str, dict[str, Any]] = {
    "hybrid": {"model_type": "nemotron_h", **SIZES, "hybrid_override_pattern": "MEM*EMEM*E-"},
    "listed": {
        "model_type": "nemotron_h", **SIZES, "n_groups": 4, "chunk_size": 5, "conv_kernel": 3,
        "norm_topk_prob": False, "routed_scaling_factor": 1.0, "layer_norm_epsilon": 1e-4,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention"],
    },
    "nested": {
        "model_type": "nemotron_h", **SIZES, "hidden_size": 16, "n_groups": 1, "mamba_num_heads": 3,
        "chunk_size": 128, "hybrid_override_pattern": "MEM*EMEM*EMEMEM*EMEM",
    },
}  # fmt: skip
BIAS = "gate.e_score_correction_bias"


def inputs() -> dict[str, np.ndarray]:
    """Tokens and labels of transformers' kind, for two samples of an odd length; some positions have no label."""
    random = np.random.default_rng(2)
    tokens = random.integers(0, SIZES["vocab_size"], (2, 13))
    labels = np.where(random.random(tokens.shape) < 0.2, -100, tokens)
    return {"tokens": tokens, "labels": labels}


def config_of(hf: dict[str, Any], *, min_dt: float | None = None) -> NemotronHConfig:
    """The config of a config.json, with the least time step that transformers has in a prefill where asked for."""
    config = nemotron_h_config(hf)
    return dataclasses.replace(config, mamba=dataclasses.replace(config.mamba, min_dt=min_dt))


def model_of(config: NemotronHConfig, weights: dict[str, np.ndarray]) -> NemotronH:
    """Our model with a checkpoint's tensors, in their dtype."""
    shell = nnx.eval_shape(lambda: NemotronH(config, rngs=nnx.Rngs(0)))
    shapes = arrays_by_path(shell)
    arrays = read_arrays(nemotron_h_entries(config), weights, shapes)
    counts = {path: np.zeros(each.shape, each.dtype) for path, each in shapes.items() if path.endswith("/counts")}
    return with_arrays(shell, {path: jnp.asarray(array) for path, array in {**arrays, **counts}.items()})


def loss_and_gradients(config: NemotronHConfig, weights, given) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The mean loss over all labels, and gradients under the checkpoint's names; correction biases have none."""
    definition, params, rest = nnx.split(model_of(config, weights), nnx.Param, ...)
    labels = np.pad(given["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    dtype = weights["lm_head.weight"].dtype
    loss_weights = (labels >= 0).astype(dtype) / (labels >= 0).sum()

    @jax.jit
    @jax.value_and_grad
    def run(params, rest):
        model = nnx.merge(definition, params, rest, copy=True)
        return model(tokens=given["tokens"], labels=labels, loss_weights=loss_weights)["loss"]

    loss, gradients = run(params, rest)
    by_path = jax.device_get(arrays_by_path(nnx.merge(definition, gradients, rest)))
    named = write_tensors(nemotron_h_entries(config), by_path)
    return np.asarray(loss), {name: gradient for name, gradient in named.items() if not name.endswith(BIAS)}


def logits(
    config: NemotronHConfig, weights, tokens: np.ndarray, *, prompt: int, steps: NemotronHConfig | None = None
) -> np.ndarray:
    """Return logits [B, S, V] by way of the cache, as `cached_logits` does; single tokens with `steps` if given."""
    decoder = None if steps is None else model_of(steps, weights)
    dtype = weights["lm_head.weight"].dtype
    return cached_logits(model_of(config, weights), tokens, prompt=prompt, dtype=dtype, decoder=decoder)
