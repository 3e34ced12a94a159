"""What a Hugging Face folder has beside the weights of our modules: config, tokenizer, buffers, calibrated scales."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.family import Family
from hetjax.models.huggingface.tensor_files.shards import ShardWriter
from hetjax.models.huggingface.tensor_files.tensors import INDEX, SINGLE, CheckpointTensors, SafetensorsFile

KEPT = "kept.safetensors"
"""Among the copied files: tensors that are none of our arrays."""

# Weights go by themselves, and what ModelOpt says of a quantized checkpoint is not true of another.
_NOT_COPIED = ("*.safetensors", INDEX, "hf_quant_config.json", ".*")


def copy_beside(source: HuggingFaceCheckpoint, folder: Path) -> None:
    """Copy what a checkpoint has beside its weights into a folder that is made."""
    copy_files(source.folder, folder)
    kept = source.kept()
    if kept:
        infos = {name: source.tensors.info(name) for name in kept}
        with ShardWriter(folder, infos, shard_bytes=1 << 62) as writer:
            for name in kept:
                writer.write(name, source.tensors[name])
        os.rename(folder / SINGLE, folder / KEPT)


def copy_files(source: Path, folder: Path) -> None:
    """Copy a folder's files but for its weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED), dirs_exist_ok=True)


def kept_tensors(folder: Path, family: Family) -> dict[str, np.ndarray]:
    """Tensors that are none of our arrays, from what `copy_beside` made or from a Hugging Face folder."""
    tensors: Mapping[str, np.ndarray] = {}
    if (folder / KEPT).exists():
        file = SafetensorsFile(folder / KEPT)
        tensors = {name: file.read(name) for name in file.tensors}
    elif any(folder.glob("*.safetensors")):
        tensors = CheckpointTensors(folder)
    return {name: tensors[name] for name in tensors if family.keeps(name)}
