"""A tiny model of SigLIP 2, a projector and a Qwen3 in the shape of LFM2-VL, and its logits by our modules."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from tests.harness.models.arrays import with_arrays
from tests.harness.models.radio_cases import image_inputs

IMAGE, GRID = 18, (2, 4)
TEXT = {
    "model_type": "qwen3", "vocab_size": 288, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 36, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
}  # fmt: skip
TOWER = {
    "model_type": "siglip2_vision_model", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 2, "patch_size": 4, "num_patches": 16, "vision_use_head": False,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "lfm2_vl", "text_config": TEXT, "vision_config": TOWER, "image_token_id": IMAGE,
    "projector_hidden_size": 30, "projector_use_layernorm": False, "downsample_factor": 1, "tie_word_embeddings": False,
}  # fmt: skip


def picture() -> np.ndarray:
    """An image of `GRID` patches, [H, W, 3]."""
    side = TOWER["patch_size"]
    return np.random.default_rng(3).normal(size=(GRID[0] * side, GRID[1] * side, 3)).astype(np.float32)


def prompt() -> np.ndarray:
    """Tokens [1, S] with a place for each patch of the image."""
    words = np.random.default_rng(4).integers(32, 288, 9)
    return np.concatenate([words[:3], np.full(GRID[0] * GRID[1], IMAGE), words[3:]])[None]


def our_logits(checkpoint: HuggingFaceCheckpoint) -> np.ndarray:
    """Return logits [1, V] of the prompt's last position."""
    modules = {}
    for name in checkpoint.modules:
        shell = checkpoint.family.module(name, checkpoint.configs)
        infos = checkpoint.infos(name)
        whole = {path: tuple(slice(0, size) for size in info.shape) for path, info in infos.items()}
        arrays = {path: jnp.asarray(checkpoint.read(name, path, box), jnp.float32) for path, box in whole.items()}
        assert arrays.keys() == arrays_by_path(shell).keys()
        modules[name] = with_arrays(shell, arrays)
    assert not checkpoint.unexpected()
    inputs, (own,) = image_inputs(checkpoint.configs["vision"], [[picture()]], rows=GRID[0] * GRID[1] + 3)
    tokens = prompt()
    seen = modules["vision"](**inputs)["tokens"]
    places = np.full((1, seen.shape[1]), tokens.shape[1], np.int32)
    places[0, np.concatenate(own)] = np.flatnonzero(tokens[0] == IMAGE)
    llm = modules["llm"]
    cache = llm.init_cache(*tokens.shape, jnp.float32)
    positions = np.arange(tokens.shape[1])[None]
    out, _ = llm.decode(cache, positions=positions, tokens=tokens, image_tokens=seen, image_positions=places)
    return np.asarray(out["logits"])
