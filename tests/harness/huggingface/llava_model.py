"""A tiny LLaVA as config.json describes it, and a batch of two pictures for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.harness.huggingface.vision_language import shifted

IMAGE = 18
TEXT = {
    "model_type": "llama", "vocab_size": 288, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 36, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
}  # fmt: skip
TOWER = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 2, "patch_size": 4, "image_size": 16, "projection_dim": 8,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "llava", "text_config": TEXT, "vision_config": TOWER, "image_token_index": IMAGE,
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
}  # fmt: skip


def given() -> dict[str, np.ndarray]:
    """Images [2, 16, 16, 3], tokens and labels [2, 27] of transformers' kind, the pictures in unlike places."""
    random = np.random.default_rng(4)
    tokens = random.integers(32, 288, (2, 27))
    tokens[0, 3:19], tokens[1, 8:24] = IMAGE, IMAGE
    labels = np.where((tokens == IMAGE) | (random.random(tokens.shape) < 0.2), -100, tokens)
    return {"images": random.normal(size=(2, 16, 16, 3)).astype(np.float32), "tokens": tokens, "labels": labels}


def our_batch(given: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The same for our modules."""
    places = np.stack([np.flatnonzero(tokens == IMAGE) for tokens in given["tokens"]]).astype(np.int32)
    llm = {"tokens": given["tokens"], "image_positions": places, **shifted(given["labels"], given["images"].dtype)}
    return {"vision": {"images": given["images"][:, None]}, "llm": llm}
