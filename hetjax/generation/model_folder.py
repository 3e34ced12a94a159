"""Open the folder of a trained model: the configs of its modules, how its prompts are made, its weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from hetjax.checkpoint.saved_weights import HUGGING_FACE, SavedWeights
from hetjax.checkpoint.warm_start import open_weights
from hetjax.config.run_config import load_config
from hetjax.data import DataConfig
from hetjax.data.chat import ProcessorConfig
from hetjax.errors import ConfigError
from hetjax.models import Qwen3VisionConfig
from hetjax.models.components import ComponentConfig
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.families import find_family
from hetjax.models.huggingface.tensor_files.json_file import read_json
from hetjax.models.json_values import Json
from hetjax.state.weight_source import WeightSource

LONGEST = 131072
"""Tokens of a prompt, where no run says how many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model in a folder.

    Attributes:
        components: The config of each module, in the order of the data.
        data: How prompts are made; its files are those of training, or none.
        source: The weights.
        param_dtype: Dtype that the model computes in.
        positions: Tokens that a prompt and its answer may have together, or None where the folder does not say.
    """

    components: dict[str, ComponentConfig]
    data: DataConfig
    source: WeightSource
    param_dtype: str
    positions: int | None = None

    def check_length(self, prompt: int, answer: int) -> None:
        """Raise ConfigError where a prompt and an answer of so many tokens have more than the model has positions."""
        if self.positions is not None and prompt + answer > self.positions:
            raise ConfigError(
                f"the prompt has {prompt} tokens and the answer may have {answer} (max_new_tokens), together more than "
                f"the {self.positions} positions that the model has (max_position_embeddings); shorten one of them"
            )


def open_model_folder(directory: str | os.PathLike[str]) -> ModelFolder:
    """Open the model in a run's folder, in what `hetjax convert` made, or in a Hugging Face folder.

    Raises ConfigError where it is none of these, ModelError or CheckpointError where it cannot be read.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ConfigError(
            f"there is no folder {folder}; give a run's folder, what `hetjax convert` made, or a Hugging Face folder"
        )
    source = open_weights(folder)
    if isinstance(source, HuggingFaceCheckpoint):
        return _from_hugging_face(source, source.configs, source.folder, source.hf)
    beside = run_settings(folder)
    if beside is not None:
        config, _ = load_config(["--config", str(beside)])
        return ModelFolder(
            components=config.model.components,
            data=config.data,
            source=source,
            param_dtype=config.compute_dtype or config.param_dtype,
        )
    beside = source.folder / HUGGING_FACE
    if isinstance(source, SavedWeights) and (beside / "config.json").is_file():
        hf = read_json(beside / "config.json")
        configs = find_family(hf, source.extra.get("family")).configs(hf)
        return _from_hugging_face(source, configs, beside, hf)
    raise ConfigError(
        f"{folder} has a checkpoint, but no settings of its model: neither config.yaml of a run nor a folder "
        f"{HUGGING_FACE}; give the run's own folder"
    )


def run_settings(folder: Path) -> Path | None:
    """Return the config.yaml of a run, given its folder, its folder of checkpoints, or that of one step."""
    for place in (folder, folder.absolute().parent, folder.absolute().parent.parent):
        if (place / "config.yaml").is_file() and (place / "checkpoints").is_dir():
            return place / "config.yaml"
    return None


def _from_hugging_face(
    source: WeightSource, configs: Mapping[str, ComponentConfig], folder: Path, hf: Mapping[str, Json]
) -> ModelFolder:
    components = {name: configs[name] for name in ("vision", "audio", "llm") if name in configs}
    if "llm" not in components:
        raise ConfigError(f"{source.name} holds {', '.join(components)}, but no language model, so it answers nothing")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder} has no tokenizer.json; fetch it into that folder")
    infos = source.infos("llm").values()
    narrow = any(info.dtype == np.dtype(ml_dtypes.bfloat16) for info in infos)
    data = DataConfig(
        train=str(folder),
        tokenizer=str(folder),
        seq_len=LONGEST,
        batch_size=1,
        processor=_processor(components, folder, hf),
    )
    param_dtype = "bfloat16" if narrow else "float32"
    return ModelFolder(
        components=components, data=data, source=source, param_dtype=param_dtype, positions=_positions(hf)
    )


def _positions(hf: Mapping[str, Json]) -> int | None:
    """Return the positions of the language model that a config.json says, at its root or in text_config, llm_config."""
    for place in (hf, *(value for value in hf.values() if isinstance(value, dict) and "vocab_size" in value)):
        found = place.get("max_position_embeddings")
        if isinstance(found, int) and found > 0:
            return found
    return None


def _processor(components: Mapping[str, ComponentConfig], folder: Path, hf: Mapping[str, Json]) -> ProcessorConfig:
    """Return the settings that a checkpoint has for images; the defaults are those of Nemotron 3 Nano Omni."""
    vision = components.get("vision")
    settings = ProcessorConfig()
    sizes = getattr(vision, "image_rows", None)
    if sizes is not None:
        resolution = DynamicResolution(patch_size=sizes.patch_size, merge=sizes.merge)
        settings = dataclasses.replace(settings, resolution=resolution)
    beside = folder / "preprocessor_config.json"
    places = (read_json(beside) if beside.is_file() else {}, hf)
    if isinstance(vision, Qwen3VisionConfig):
        said, area = places[0].get("size") or {}, sizes.patch_size**2
        bounds = {"min_patches": said.get("shortest_edge", 65536), "max_patches": said.get("longest_edge", 16777216)}
        bounds = {name: pixels // area for name, pixels in bounds.items()}
        resolution = dataclasses.replace(settings.resolution, rule="qwen", **bounds)
        half = (0.5, 0.5, 0.5)
        settings = dataclasses.replace(settings, resolution=resolution, pixel_mean=half, pixel_std=half)
    if sizes is None:
        shape = "pad" if places[0].get("do_pad") else "crop" if places[0].get("do_center_crop") else "stretch"
        settings = dataclasses.replace(settings, square=shape)
    for field, keys in {"pixel_mean": ("norm_mean", "image_mean"), "pixel_std": ("norm_std", "image_std")}.items():
        values = [place[key] for place in places for key in keys if place.get(key) is not None]
        if values:
            settings = dataclasses.replace(settings, **{field: tuple(values[0])})
    return settings
