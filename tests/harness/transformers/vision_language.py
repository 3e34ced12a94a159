"""Whole models of transformers, a vision encoder with a language model, under the names that they are saved by."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import torch
import transformers

from tests.harness.transformers.decoders import randomize

CLASSES = {
    "llava": (transformers.LlavaConfig, transformers.LlavaForConditionalGeneration),
    "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
    "qwen3_vl_moe": (transformers.Qwen3VLMoeConfig, transformers.Qwen3VLMoeForConditionalGeneration),
}
SAVED = {
    "llava": (
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.vision_tower\.", "vision_tower.vision_model."),
        (r"^model\.", ""),
    ),
}
"""Names of parameters and, by the first that fits, those that a released checkpoint has."""


def build(hf: dict[str, Any]) -> torch.nn.Module:
    """The model with random weights."""
    make_config, make_model = CLASSES[hf["model_type"]]
    settings = {key: value for key, value in copy.deepcopy(hf).items() if key != "model_type"}
    torch.manual_seed(0)
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = make_model._from_config(make_config(**settings), **plain)
    randomize(model)
    return model.eval()


def run(model: torch.nn.Module, labels: np.ndarray, **inputs: np.ndarray) -> dict[str, Any]:
    """{"weights", "gradients": by name, "logits" [B, S, V], "loss"} of a model."""
    made = model(labels=torch.as_tensor(labels), **{name: torch.as_tensor(each) for name, each in inputs.items()})
    made.loss.backward()
    parameters = dict(model.named_parameters())
    kind = model.config.model_type
    return {
        "weights": {saved(kind, name): each.detach().numpy() for name, each in parameters.items()},
        "gradients": {
            saved(kind, name): each.grad.numpy() for name, each in parameters.items() if each.grad is not None
        },
        "logits": made.logits.detach().numpy(),
        "loss": made.loss.detach().numpy(),
    }


def saved(kind: str, name: str) -> str:
    """The name of a parameter in a released checkpoint."""
    for pattern, replacement in SAVED.get(kind, ()):
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
