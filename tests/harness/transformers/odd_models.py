"""Tiny language models of transformers by the settings of `tests.harness.huggingface.odd_configs`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.harness.huggingface.odd_configs import Odd, random_tensors


def config_json(odd: Odd) -> dict[str, Any]:
    """Return config.json as transformers writes it; what it says of quantization it is not asked to understand."""
    said = {key: odd.settings[key] for key in ("quantization_config",) if key in odd.settings}
    return {**json.loads(_config(odd).to_json_string()), **said}


def _config(odd: Odd, *without: str) -> transformers.PretrainedConfig:
    left_out = ("quantization_config", *without)
    settings = {key: value for key, value in odd.settings.items() if key not in left_out}
    return transformers.AutoConfig.for_model(**copy.deepcopy(settings))


def save_model(odd: Odd, folder: Path) -> None:
    """Save a model with weights of `random_tensors`, in float32, whatever dtype its config says."""
    model = transformers.AutoModelForCausalLM.from_config(_config(odd, "dtype"))
    model.to(torch.float32).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        random_tensors({name: each.shape for name, each in tensors.items()}),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config_json(odd)))


@torch.no_grad()
def logits_of_folder(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the logits [B, V] of the last position of tokens [B, S], of the model that transformers loads."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model.eval()(input_ids=torch.as_tensor(tokens)).logits[:, -1].numpy()
