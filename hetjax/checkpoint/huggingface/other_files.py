"""Copies what a Hugging Face folder has beside our modules' weights: config, tokenizer, buffers, calibrated scales."""

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

# Weights are written one by one, and ModelOpt's description of a quantized checkpoint is not true of another.
_NOT_COPIED = ("*.safetensors", INDEX, "hf_quant_config.json", ".*")


def copy_other_files(source: HuggingFaceCheckpoint, folder: Path) -> None:
    """Copy all of a checkpoint but the tensors that our modules take into a folder that is made."""
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
    """Return the tensors that are none of our arrays, from a folder of `copy_other_files` or one of Hugging Face."""
    tensors: Mapping[str, np.ndarray] = {}
    if (folder / KEPT).exists():
        file = SafetensorsFile(folder / KEPT)
        tensors = {name: file.read(name) for name in file.tensors}
    elif any(folder.glob("*.safetensors")):
        tensors = CheckpointTensors(folder)
    return {name: tensors[name] for name in tensors if family.keeps(name)}
