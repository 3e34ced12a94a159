"""Imports a Hugging Face checkpoint as one of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import yaml

from hetjax.checkpoint.array_files import write_array, write_metadata
from hetjax.checkpoint.description import DESCRIPTION_FILE, Description, describe_module
from hetjax.checkpoint.folder import CheckpointFolder
from hetjax.checkpoint.huggingface.other_files import copy_other_files
from hetjax.checkpoint.items import ITEM_TYPES_FILE, item_types, place_in_item
from hetjax.checkpoint.saved_weights import HUGGING_FACE
from hetjax.errors import ConfigError
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo, listed
from hetjax.stages.flat_state import flatten_module
from hetjax.state.module_state import Kind

MODEL_SETTINGS = "model.yaml"
"""The settings `model:` of a run, for train.py."""

ModuleInfos: TypeAlias = Mapping[Kind, Mapping[str, TensorInfo]]
"""Shape and dtype of a module's arrays by kind and path."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportReport:
    """The result of an import.

    Attributes:
        family: family of the Hugging Face checkpoint.
        modules: names of its modules.
        tensors: how many tensors it has.
        arrays, bytes: how many arrays were written, and their bytes.
        dequantized: how many of its weights were quantized.
        left_out: tensors that no module takes.
    """

    family: str
    modules: list[str]
    tensors: int
    arrays: int
    bytes: int
    dequantized: int
    left_out: list[str]


def import_from_huggingface(
    source: HuggingFaceCheckpoint, directory: Path, *, allow_unexpected: bool = False
) -> ImportReport:
    """Write a Hugging Face checkpoint as one of ours, of step 0, into `directory`.

    Raises ModelError for missing or misshapen tensors, ConfigError for unexpected ones unless they are allowed, and
    where the directory has a checkpoint already.
    """
    folder = CheckpointFolder(Path(directory).absolute())
    if folder.steps():
        raise ConfigError(f"{directory} has a checkpoint already; give another folder or delete it")
    modules = {module: _module_infos(source, module) for module in source.modules}
    unexpected = source.unexpected()
    if unexpected and not allow_unexpected:
        raise ConfigError(
            f"{source.name} holds {len(unexpected)} tensors that no module of family '{source.family.name}' takes: "
            f"{listed(unexpected)}; leave them out with --allow_unexpected true"
        )
    folder.begin(0)
    for module, arrays in modules.items():
        _write_module(source, module, arrays, folder.partial_item(0, f"{module}.weights"))
    copy_other_files(source, folder.partial_item(0, HUGGING_FACE))
    description = Description(
        step=0,
        modules={module: describe_module(arrays) for module, arrays in modules.items()},
        extra={"family": source.family.name},
    )
    model = {module: dataclasses.asdict(config) for module, config in source.configs.items()}
    (folder.directory / MODEL_SETTINGS).write_text(yaml.safe_dump({"model": _without_tuples(model)}, sort_keys=False))
    texts = {
        DESCRIPTION_FILE: description.to_json(),
        ITEM_TYPES_FILE: item_types(f"{module}.weights" for module in modules),
    }
    folder.commit(0, texts)
    arrays = [info for kinds in modules.values() for found in kinds.values() for info in found.values()]
    return ImportReport(
        family=source.family.name,
        modules=list(source.modules),
        tensors=len(source.tensors),
        arrays=len(arrays),
        bytes=sum(info.nbytes for info in arrays),
        dequantized=len(source.tensors.forms),
        left_out=unexpected,
    )


def _module_infos(source: HuggingFaceCheckpoint, module: str) -> ModuleInfos:
    infos = source.infos(module)
    _, params, buffers = flatten_module(source.family.module(module, source.configs))
    if empty := sorted(params.keys() - infos.keys()):
        raise ConfigError(f"family '{source.family.name}' has no tensors for {listed(empty)} of module '{module}'")
    # A buffer that checkpoints do not know, such as a count of a step's tokens, starts as it is built.
    found = {"params": params, "buffers": buffers}
    return {kind: {path: infos[path] for path in arrays if path in infos} for kind, arrays in found.items()}


def _write_module(source: HuggingFaceCheckpoint, module: str, kinds: ModuleInfos, folder: Path) -> None:
    folder.mkdir()
    for kind, found in kinds.items():
        for path, info in found.items():
            read = lambda box, path=path: source.read(module, path, box)  # noqa: E731
            place = place_in_item(module, kind, path)
            write_array(folder, place.name, info.shape, info.dtype, source.stacks(module, path), read)
    write_metadata(folder, [(kind, *path.split("/")) for kind, found in kinds.items() for path in found])


def _without_tuples(settings: object) -> object:
    """Settings with lists in the place of tuples, which YAML does not know."""
    if isinstance(settings, dict):
        return {key: _without_tuples(each) for key, each in settings.items()}
    return [_without_tuples(each) for each in settings] if isinstance(settings, list | tuple) else settings
