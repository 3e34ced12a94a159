"""Gives the weights of a run that trained low-rank maps: these, added to the frozen weights beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hetjax.checkpoint.saved_weights import HUGGING_FACE, SavedWeights
from hetjax.errors import ConfigError
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo
from hetjax.models.lora import LoraConfig, low_rank_product
from hetjax.state.weight_source import Box, WeightSource

A, B = "lora/a/kernel", "lora/b/kernel"
"""Where the parts of a low-rank map are, beside "kernel" of the linear map."""


class LowRankParts(NamedTuple):
    """What is added to a kernel: a [*layers, *ins, R] and b [*layers, R, *outs], how many dims of ins; the factor."""

    a: np.ndarray
    b: np.ndarray
    ins: int
    scale: float


class MergedWeights:
    """The weights of a checkpoint, low-rank maps added to the kernels of the source that their training began with.

    Args:
        saved: the checkpoint, which holds the low-rank maps of some modules and all of the others.
        loras: the settings of those modules.
        bases: where their other weights are.

    Raises ConfigError where the checkpoint holds no low-rank maps of a module.
    """

    def __init__(self, saved: SavedWeights, loras: Mapping[str, LoraConfig], bases: Mapping[str, WeightSource]):
        self.saved, self.loras, self.bases = saved, dict(loras), dict(bases)
        self.folder, self.extra, self.step = saved.folder, saved.extra, saved.step
        for module in loras:
            if not any(path.endswith(A) for path in saved.infos(module)):
                raise ConfigError(
                    f"the settings beside {saved.name} say that module '{module}' trained by low-rank maps, but the "
                    "checkpoint holds none; give the settings that it was trained with"
                )

    @property
    def name(self) -> str:
        """Name in messages: the folder of the step."""
        return self.saved.name

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it holds."""
        return self.saved.modules

    @property
    def trained_whole(self) -> tuple[str, ...]:
        """The modules without low-rank maps that have an optimizer's state."""
        return tuple(module for module in self.saved.trained if module not in self.loras)

    def moved_buffers(self, module: str) -> list[str]:
        """Return the paths of what a module holds beside weights, which may have moved while low-rank maps trained."""
        return [path for path in self.saved.infos(module) if not path.endswith((A, B))]

    @property
    def base_folder(self) -> Path | None:
        """The Hugging Face folder that the training began with, or the files that one had beside its weights."""
        for base in self.bases.values():
            if isinstance(base, HuggingFaceCheckpoint):
                return base.folder
            if isinstance(base, SavedWeights) and (base.folder / HUGGING_FACE).is_dir():
                return base.folder / HUGGING_FACE
        return None

    def infos(self, module: str) -> dict[str, TensorInfo]:
        """Return shape and dtype of every weight and buffer of a module."""
        held = self.saved.infos(module)
        if module not in self.loras:
            return held
        buffers = {path: info for path, info in held.items() if not path.endswith((A, B))}
        return {**self.bases[module].infos(module), **buffers}

    def read(self, module: str, path: str, box: Box) -> np.ndarray:
        """Return a part of a module's array, in the dtype of `infos`."""
        held = self.saved.infos(module)
        if module not in self.loras or path in held:
            return self.saved.read(module, path, box)
        base = self.bases[module].read(module, path, box)
        start = path.removesuffix("kernel")
        if not path.endswith("/kernel") or f"{start}{A}" not in held:
            return base
        stacked = held[f"{start}{B}"], len(self.bases[module].infos(module)[path].shape)
        layers = box[: _layers(held[f"{start}{A}"], *stacked)]
        parts = self.low_rank(module, path, layers)
        added = low_rank_product(*parts)[(..., *box[len(layers) :])]
        wide = jnp.promote_types(base.dtype, jnp.float32)
        return (base.astype(wide) + added).astype(base.dtype)

    def low_rank(self, module: str, path: str, layers: Box) -> LowRankParts:
        """Return the low-rank map beside a kernel, of these layers."""
        start, held = path.removesuffix("kernel"), self.saved.infos(module)
        a, b = held[f"{start}{A}"], held[f"{start}{B}"]
        whole = [(*layers, *(slice(0, size) for size in info.shape[len(layers) :])) for info in (a, b)]
        return LowRankParts(
            self.saved.read(module, f"{start}{A}", whole[0]),
            self.saved.read(module, f"{start}{B}", whole[1]),
            len(a.shape) - len(layers) - 1,
            self.loras[module].scale,
        )

    def adapted(self, module: str) -> list[str]:
        """Return the paths of the kernels that have a low-rank map beside them."""
        return [path.removesuffix(A) + "kernel" for path in self.saved.infos(module) if path.endswith(A)]


Weights = SavedWeights | MergedWeights
"""The weights of a checkpoint of ours."""


def _layers(a: TensorInfo, b: TensorInfo, dims: int) -> int:
    """How many dims of layers lead a kernel of so many dims: a and b have them both, and the rank."""
    return len(a.shape) + len(b.shape) - 2 - dims
