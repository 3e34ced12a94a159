"""One of our checkpoints into a Hugging Face checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hetjax.checkpoint.huggingface.export_list import Plan
from hetjax.checkpoint.huggingface.other_files import copy_files, kept_tensors
from hetjax.checkpoint.saved_weights import HUGGING_FACE, SavedWeights
from hetjax.config.run_config import load_config
from hetjax.errors import ConfigError
from hetjax.models.huggingface.config_json import read_json
from hetjax.models.huggingface.families import find_family
from hetjax.models.huggingface.family import Configs, Family
from hetjax.models.huggingface.tensor_files.precision import quantization_config
from hetjax.models.huggingface.tensor_files.quantized import ACTIVATION_SCALES, Form
from hetjax.models.huggingface.tensor_files.shards import SHARD_BYTES, ShardWriter
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo


def from_checkpoint(
    source: SavedWeights,
    folder: Path,
    *,
    like: Path | None = None,
    family: str | None = None,
    dtype: np.dtype | None = None,
    quantize: Form | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write one of our checkpoints as a Hugging Face checkpoint; what was done, as plain data.

    config.json and the files beside the weights are those of `like`, a Hugging Face folder of the same model; else
    those that `into_checkpoint` kept; else, for a run of ours and a `family`, config.json is written from the run's
    settings.

    Raises ConfigError where there is none of these or the folder holds files, and where the checkpoint does not fit.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give another folder")
    beside = Path(like) if like is not None else source.folder / HUGGING_FACE
    kind, configs, hf = _model(source, beside, like is not None, family)
    plan = Plan(source, kind, configs, dtype, quantize)
    kept = kept_tensors(beside, kind) if beside.exists() else kind.constants(configs)
    # Scales of activations belong to a quantized form; those of inputs stand beside their weights.
    scales = {name: kept.pop(name) for name in list(kept) if name.endswith(ACTIVATION_SCALES)}
    if quantize is not None:
        kept |= {name: scale for name, scale in scales.items() if not name.endswith(".input_scale")}
    infos = {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in kept.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder, {**plan.infos, **infos}, shard_bytes=shard_bytes) as writer:
        for name, tensor in kept.items():
            writer.write(name, tensor)
        plan.write(writer, scales)
    if beside.exists():
        copy_files(beside, folder)
    (folder / "config.json").write_text(json.dumps(_config_out(hf, plan, dtype), indent=2) + "\n")
    forms = list(plan.forms.values())
    return {
        "family": kind.name,
        "modules": list(plan.entries),
        "tensors": len(plan.infos) + len(kept),
        "bytes": sum(info.nbytes for info in plan.infos.values()),
        "quantized": {form: forms.count(form) for form in sorted(set(forms))},
        "shards": len(writer.paths),
    }


def _model(
    source: SavedWeights, beside: Path, given: bool, family: str | None
) -> tuple[Family, Configs, dict[str, Any]]:
    """(family, configs of its modules, config.json)."""
    if (beside / "config.json").exists():
        hf = read_json(beside / "config.json")
        kind = find_family(hf, family)
        return kind, kind.read_config(hf), hf
    if given:
        raise ConfigError(f"{beside} has no config.json; give --like a Hugging Face folder of the same model")
    settings = source.folder.parent.parent / "config.yaml"
    if family is None or not settings.exists():
        raise ConfigError(
            f"{source.name} was not converted from a Hugging Face folder; give --like such a folder of the same model, "
            "or, for a checkpoint of a run, the --family that it becomes"
        )
    kind = find_family({}, family)
    config, _ = load_config(["--config", os.fspath(settings)])
    built = config.model.components
    if lacking := [module for module in kind.build if module not in built]:
        raise ConfigError(f"family '{kind.name}' has a module '{lacking[0]}', which {settings} lacks")
    configs = {module: built[module] for module in kind.build}
    return kind, configs, kind.write_config(configs)


def _config_out(hf: dict[str, Any], plan: Plan, dtype: np.dtype | None) -> dict[str, Any]:
    """config.json of what was written."""
    before = hf.get("quantization_config") or {}
    out = {key: value for key, value in hf.items() if key != "quantization_config"}
    if dtype is not None:
        out = _with_dtype(out, dtype.name)
    if plan.forms:
        out["quantization_config"] = quantization_config(plan.forms, plan.plain, before)
    return out


def _with_dtype(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """A config that says this dtype wherever it says one."""
    return {
        key: name
        if key in ("dtype", "torch_dtype") and value is not None
        else _with_dtype(value, name)
        if isinstance(value, dict)
        else value
        for key, value in tree.items()
    }
