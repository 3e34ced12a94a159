"""Stamps of the weights beside low-rank maps: no checkpoint of the run holds them, and each reading takes them anew."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hetjax.checkpoint.checksums import CHECKSUMS_FILE
from hetjax.checkpoint.description import DESCRIPTION_FILE
from hetjax.checkpoint.merged_weights import MergedWeights
from hetjax.checkpoint.saved_weights import SavedWeights
from hetjax.data.reading.fingerprint import fingerprint
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.state.weight_source import WeightSource

Stamps = Mapping[str, str]
"""A stamp of the weights of each module that has low-rank maps beside weights out of a folder."""


def base_stamps(sources: Mapping[str, WeightSource], modules: Iterable[str]) -> dict[str, str]:
    """Return stamps of the weights that these modules start from; weights from a seed have none. Raises OSError."""
    return {module: fingerprint(_files(sources[module])) for module in modules if module in sources}


def changed_bases(before: Stamps, now: Stamps) -> Collection[str]:
    """Return the modules whose weights beside low-rank maps are others than those that these were trained beside."""
    return [module for module, stamp in before.items() if now.get(module) != stamp]


def _files(source: WeightSource) -> list[Path]:
    """The files whose content stands for the weights: the checksums of a checkpoint, the tensors of others."""
    if isinstance(source, MergedWeights):
        return [*_files(source.saved), *(file for base in source.bases.values() for file in _files(base))]
    if isinstance(source, SavedWeights):
        return [source.folder / (CHECKSUMS_FILE if (source.folder / CHECKSUMS_FILE).exists() else DESCRIPTION_FILE)]
    return sorted(source.folder.glob("*.safetensors")) if isinstance(source, HuggingFaceCheckpoint) else []
