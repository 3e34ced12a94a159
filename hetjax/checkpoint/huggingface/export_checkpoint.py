"""Exports one of our checkpoints as a Hugging Face checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hetjax.checkpoint.huggingface.export_list import ExportList
from hetjax.checkpoint.huggingface.other_files import copy_files, kept_tensors
from hetjax.checkpoint.huggingface.run_files import RunPrompts
from hetjax.checkpoint.merged_weights import MergedWeights, Weights
from hetjax.checkpoint.saved_weights import HUGGING_FACE
from hetjax.config.run_config import load_config
from hetjax.errors import ConfigError
from hetjax.models.huggingface.families import find_family
from hetjax.models.huggingface.family import Configs, Family
from hetjax.models.huggingface.tensor_files.json_file import read_json
from hetjax.models.huggingface.tensor_files.precision import quantization_config
from hetjax.models.huggingface.tensor_files.quantized import ACTIVATION_SCALES, Form
from hetjax.models.huggingface.tensor_files.shards import SHARD_BYTES, ShardWriter
from hetjax.models.huggingface.tensor_files.tensors import CheckpointTensors, TensorInfo
from hetjax.models.json_values import Json


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The result of an export.

    Attributes:
        family: family of the Hugging Face checkpoint.
        modules: names of its modules.
        tensors, bytes: how many tensors it has, and the bytes of those that were made of our arrays.
        quantized: number of quantized weights by their form.
        shards: number of files of tensors.
    """

    family: str
    modules: list[str]
    tensors: int
    bytes: int
    quantized: dict[str, int]
    shards: int


class Model(NamedTuple):
    """The family of a checkpoint, the config of each module, config.json; for a run how its prompts are made."""

    family: Family
    configs: Configs
    config_json: Mapping[str, Json]
    prompts: RunPrompts | None = None


def export_to_huggingface(
    source: Weights,
    folder: Path,
    *,
    like: Path | None = None,
    family: str | None = None,
    dtype: np.dtype | None = None,
    quantize: Form | None = None,
    leave_out: Collection[str] = (),
    shard_bytes: int = SHARD_BYTES,
) -> ExportReport:
    """Write one of our checkpoints as a Hugging Face checkpoint into `folder`, which is made.

    config.json and the files beside the weights are those of `like`, a Hugging Face folder of the same model; else
    those that the import kept; else, for a run of ours and a `family`, they are written from the run's settings and the
    files of its tokenizer. A module that the family has no place for is left behind only where `leave_out` names it.
    Floats are cast to `dtype`, if that is given, and weights of the modules that the release `quantize` quantizes are
    quantized. A file holds at most `shard_bytes`, unless a single tensor has more.

    Raises ConfigError where there is none of these or the folder holds files, and where the checkpoint does not fit.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give another folder")
    beside = _beside(source, like)
    model = read_model(source, like, family)
    _check_left_out(source, model, leave_out)
    export_list = ExportList(source, model.family, model.configs, dtype, quantize)
    kept = kept_tensors(beside, model.family) if beside.exists() else model.family.constants(model.configs)
    kept = {name: tensor for name, tensor in kept.items() if name not in export_list.plain}
    # Scales of activations belong to a quantized form; those of inputs stand beside their weights.
    scales = {name: kept.pop(name) for name in list(kept) if name.endswith(ACTIVATION_SCALES)}
    if quantize is not None:
        kept |= {name: scale for name, scale in scales.items() if not name.endswith(".input_scale")}
    infos = {name: TensorInfo(tensor.shape, tensor.dtype) for name, tensor in kept.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder, {**export_list.infos, **infos}, shard_bytes=shard_bytes) as writer:
        for name, tensor in kept.items():
            writer.write(name, tensor)
        export_list.write(writer, scales)
    if model.prompts is None:
        copy_files(beside, folder)
    elif "llm" in model.configs:
        model.prompts.write(folder)
    exported = _exported_config(model.config_json, export_list, dtype)
    (folder / "config.json").write_text(json.dumps(exported, indent=2) + "\n")
    forms = list(export_list.forms.values())
    return ExportReport(
        family=model.family.name,
        modules=list(export_list.entries),
        tensors=len(export_list.infos) + len(kept),
        bytes=sum(info.nbytes for info in export_list.infos.values()),
        quantized={form: forms.count(form) for form in sorted(set(forms))},
        shards=len(writer.paths),
    )


def _beside(source: Weights, like: Path | None) -> Path:
    """The folder with config.json: given, or what the training of low-rank maps began with, or an import's."""
    base = source.base_folder if isinstance(source, MergedWeights) else None
    return Path(like or base or source.folder / HUGGING_FACE)


def read_model(source: Weights, like: Path | None, family: str | None) -> Model:
    """Return the model of a Hugging Face folder, given or kept by an import; else of the settings of a run.

    Raises ConfigError where there is none of these.
    """
    beside, is_given = _beside(source, like), like is not None
    if (beside / "config.json").exists():
        config_json = read_json(beside / "config.json")
        tensors = CheckpointTensors(beside) if is_given and any(beside.glob("*.safetensors")) else None
        found = find_family(config_json, family or (None if is_given else source.extra.get("family")), tensors)
        return Model(found, found.configs(config_json), config_json)
    if is_given:
        raise ConfigError(f"{beside} has no config.json; give --like a Hugging Face folder of the same model")
    settings = source.folder.parent.parent / "config.yaml"
    if family is None or not settings.exists():
        raise ConfigError(
            f"{source.name} was not converted from a Hugging Face folder; give --like such a folder of the same model, "
            "or, for a checkpoint of a run, the --family that it becomes"
        )
    found = find_family({}, family)
    config, _ = load_config(["--config", os.fspath(settings)])
    built = config.model.components
    if lacking := [module for module in found.build if module not in built]:
        raise ConfigError(f"family '{found.name}' has a module '{lacking[0]}', which {settings} lacks")
    configs = {module: built[module] for module in found.build}
    for module, kind in found.kinds.items():
        if type(configs[module]) is not kind:  # one with more settings is another model
            raise ConfigError(
                f"family '{found.name}' takes a {kind.__name__} as module '{module}', which is a "
                f"{type(configs[module]).__name__} in {settings}; give the family of that model"
            )
    prompts = RunPrompts(config)
    return Model(found, configs, prompts.added_to(found.write_config(configs)), prompts)


def _check_left_out(source: Weights, model: Model, leave_out: Collection[str]) -> None:
    """Raise ConfigError for a module that would be left behind without being named, or is named and would not be."""
    left = [module for module in source.modules if module not in model.configs]
    if wrong := [module for module in leave_out if module not in left]:
        raise ConfigError(
            f"leave_out names {', '.join(wrong)}, but {source.name} leaves {', '.join(left) or 'nothing'} behind as a "
            f"'{model.family.name}'; drop it there"
        )
    if behind := [module for module in left if module not in leave_out]:
        raise ConfigError(
            f"family '{model.family.name}' has no place for {', '.join(behind)} of {source.name}; give a family of all "
            f"modules, or leave them behind with --leave_out {' '.join(behind)}"
        )


def _exported_config(
    config_json: Mapping[str, Json], export_list: ExportList, dtype: np.dtype | None
) -> dict[str, Json]:
    """The config.json of the exported checkpoint, with the dtype that most of its bytes are in."""
    before = config_json.get("quantization_config") or {}
    exported = {key: value for key, value in config_json.items() if key != "quantization_config"}
    sizes: dict[str, int] = {}
    for info in export_list.plain.values():
        sizes[info.dtype.name] = sizes.get(info.dtype.name, 0) + info.nbytes
    name = max(sizes, key=lambda each: sizes[each]) if dtype is None else dtype.name
    if "dtype" not in exported:
        exported.setdefault("torch_dtype", name)
    if dtype is not None or name != exported.get("torch_dtype", exported.get("dtype")):
        exported = _with_dtype(exported, name)
    if export_list.forms:
        exported["quantization_config"] = quantization_config(export_list.forms, export_list.plain, before)
    return exported


def _with_dtype(tree: Mapping[str, Json], name: str) -> dict[str, Json]:
    """A config with this dtype wherever it has one."""
    return {
        key: name
        if key in ("dtype", "torch_dtype") and value is not None
        else _with_dtype(value, name)
        if isinstance(value, dict)
        else value
        for key, value in tree.items()
    }
