"""Small Hugging Face folders, written by the safetensors library from a model's own entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.entry_shapes import name_infos
from hetjax.models.huggingface.families import find_family
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN3_MOE = {
    **LLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "num_hidden_layers": 2,
}


def shapes_of(hf: dict[str, Any], family: str | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the model, by name."""
    found = find_family(hf, family)
    configs, shapes = found.configs(hf), {}
    for module, entries in found.entries(configs).items():
        ours = arrays_by_path(found.module(module, configs))
        for entry in entries:
            parts = [
                TensorInfo(tuple(ours[slot.path].shape[len(slot.index) :]), np.dtype(np.float32))
                for slot in entry.slots
            ]
            infos = zip(entry.names, name_infos(entry, parts), strict=True)
            shapes |= {name: info.shape for name, info in infos}
    return shapes


def tensors_of(hf: dict[str, Any], dtype: Any = ml_dtypes.bfloat16, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors for every name of the model, norms too."""
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes_of(hf).items()}


def write_folder(folder: Path, hf: dict[str, Any], tensors: dict[str, np.ndarray], shards: int = 1) -> Path:
    """The folder, with files beside the weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf))
    (folder / "tokenizer.json").write_text('{"made": "up"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        save_file({name: tensors[name] for name in names[i::shards]}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[i::shards], shard)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
