"""Exports the low-rank maps of a checkpoint in the format of Hugging Face's PEFT.

adapter_config.json and adapter_model.safetensors hold, for a linear map with the tensor NAME.weight [out, in] of the
Hugging Face checkpoint, lora_A [R, in] and lora_B [out, R]: alpha / R * lora_B lora_A is added to the tensor.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hetjax.checkpoint.huggingface.export_checkpoint import read_model
from hetjax.checkpoint.merged_weights import MergedWeights
from hetjax.errors import ConfigError
from hetjax.models.huggingface.entry import Entry
from hetjax.models.json_values import JsonObject
from hetjax.models.lora import LoraConfig, low_rank_product

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """The result of an export.

    Attributes:
        family: family of the Hugging Face checkpoint whose names the tensors have.
        modules: names of the modules with low-rank maps.
        tensors, bytes: how many tensors were written, and their bytes.
    """

    family: str
    modules: list[str]
    tensors: int
    bytes: int


def export_adapter(
    source: MergedWeights, folder: Path, *, like: Path | None = None, family: str | None = None
) -> AdapterReport:
    """Write the low-rank maps of a checkpoint as an adapter that PEFT loads into `folder`, which is made.

    Names are those of the family's tensors, found as by `export_to_huggingface`; numbers are float32. Modules that
    train whole are no part of it: raises ConfigError where there are some, where the folder holds files, and for a map
    whose tensor in the family is made of more than it, or in another order.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give another folder")
    model = read_model(source, like, family)
    if whole := [module for module in model.family.build if module in source.trained_whole]:
        raise ConfigError(
            f"{source.name}: {', '.join(whole)} trained without low-rank maps, and an adapter has no place for whole "
            "weights; convert without --adapter, which writes a merged checkpoint"
        )
    if moved := [module for module in source.loras if source.moved_buffers(module)]:
        raise ConfigError(
            f"{source.name}: {', '.join(moved)} has statistics or biases that move while low-rank maps train, and an "
            "adapter has no place for them; convert without --adapter, which writes a merged checkpoint"
        )
    entries = model.family.entries(model.configs)
    tensors: dict[str, np.ndarray] = {}
    settings: dict[str, LoraConfig] = {}
    for module, config in source.loras.items():
        for path in source.adapted(module):
            own = [each for each in entries.get(module, []) if path in {slot.path for slot in each.slots}]
            if not own:
                raise ConfigError(f"family '{model.family.name}' has no tensors of {path} of module '{module}'")
            for entry in own:
                name = entry.names[0].removesuffix(".weight")
                a, b = _as_peft(source, module, path, entry)
                tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
                settings[name] = config
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    base = None if source.base_folder is None else str(source.base_folder)
    (folder / CONFIG_FILE).write_text(json.dumps(_config(settings, base), indent=2) + "\n", encoding="utf-8")
    return AdapterReport(
        family=model.family.name,
        modules=list(source.loras),
        tensors=len(tensors),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )


def _as_peft(source: MergedWeights, module: str, path: str, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """(lora_A [R, in], lora_B [out, R]) of one tensor. Raises ConfigError unless they make all that is added to it."""
    index = entry.slots[0].index
    found = source.low_rank(module, path, tuple(slice(at, at + 1) for at in index))
    rank = found.a.shape[-1]
    a = np.asarray(found.a, np.float32).reshape(-1, rank).T
    b = np.asarray(found.b, np.float32).reshape(rank, -1).T
    added = low_rank_product(*found).reshape(found.a.shape[len(index) : -1] + found.b.shape[len(index) + 1 :])
    alone = len(entry.names) == len(entry.slots) == 1
    if not alone or not np.allclose(entry.write(added)[0], found.scale * b @ a, rtol=1e-4, atol=1e-6):
        raise ConfigError(
            f"{', '.join(entry.names)} is no plain transpose of {path} of module '{module}', so that its low-rank map "
            "has no form in PEFT; convert without --adapter, which writes a merged checkpoint"
        )
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


def _config(settings: dict[str, LoraConfig], base: str | None) -> JsonObject:
    """The content of adapter_config.json: the first map's rank and alpha, and those of others that have their own."""
    first = next(iter(settings.values()))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": list(settings),
        "rank_pattern": {name: each.rank for name, each in settings.items() if each.rank != first.rank},
        "alpha_pattern": {name: each.alpha for name, each in settings.items() if each.alpha != first.alpha},
    }
