"""A Hugging Face checkpoint into one of ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from hetjax.checkpoint.array_files import write_array, write_metadata
from hetjax.checkpoint.description import description_of
from hetjax.checkpoint.folder import CheckpointFolder
from hetjax.checkpoint.huggingface.other_files import copy_beside
from hetjax.checkpoint.items import place_in_item
from hetjax.checkpoint.saved_weights import HUGGING_FACE
from hetjax.errors import ConfigError
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo, listed
from hetjax.stages.flat_state import take_apart

MODEL_SETTINGS = "model.yaml"
"""The settings `model:` of a run, for train.py."""

Kinds = dict[str, dict[str, TensorInfo]]
"""A module's arrays by kind ("params", "buffers") and path."""


def into_checkpoint(
    source: HuggingFaceCheckpoint, directory: Path, *, allow_unexpected: bool = False
) -> dict[str, Any]:
    """Write a Hugging Face checkpoint as one of ours; what was done, as plain data.

    Raises ModelError for missing or misshapen tensors, ConfigError for unexpected ones unless they are allowed, and
    where the directory has a checkpoint already.
    """
    folder = CheckpointFolder(Path(directory).absolute())
    if folder.steps():
        raise ConfigError(f"{directory} has a checkpoint already; give another folder or delete it")
    kinds = {module: _kinds(source, module) for module in source.modules}
    unexpected = source.unexpected()
    if unexpected and not allow_unexpected:
        raise ConfigError(
            f"{source.name} holds {len(unexpected)} tensors that no module of family '{source.family.name}' takes: "
            f"{listed(unexpected)}; leave them out with --allow_unexpected true"
        )
    folder.begin(0)
    for module, arrays in kinds.items():
        _write_module(source, module, arrays, folder.partial_item(0, f"{module}.weights"))
    copy_beside(source, folder.partial_item(0, HUGGING_FACE))
    metadata = folder.partial_item(0, "description") / "metadata"
    metadata.parent.mkdir()
    metadata.write_text(json.dumps(description_of(0, _described(kinds), {"family": source.family.name})))
    model = {module: dataclasses.asdict(config) for module, config in source.configs.items()}
    (folder.directory / MODEL_SETTINGS).write_text(yaml.safe_dump(_plain({"model": model}), sort_keys=False))
    folder.commit(0)
    arrays = [info for each in kinds.values() for found in each.values() for info in found.values()]
    return {
        "family": source.family.name,
        "modules": list(source.modules),
        "tensors": len(source.tensors),
        "arrays": len(arrays),
        "bytes": sum(info.nbytes for info in arrays),
        "dequantized": len(source.tensors.forms),
        "left_out": unexpected,
    }


def _kinds(source: HuggingFaceCheckpoint, module: str) -> Kinds:
    infos = source.infos(module)
    _, params, buffers = take_apart(source.family.module(module, source.configs))
    if empty := sorted(params.keys() - infos.keys()):
        raise ConfigError(f"family '{source.family.name}' has no tensors for {listed(empty)} of module '{module}'")
    # A buffer that checkpoints do not know, such as a count of a step's tokens, starts as it is built.
    found = {"params": params, "buffers": buffers}
    return {kind: {path: infos[path] for path in arrays if path in infos} for kind, arrays in found.items()}


def _write_module(source: HuggingFaceCheckpoint, module: str, kinds: Kinds, folder: Path) -> None:
    folder.mkdir()
    for kind, found in kinds.items():
        for path, info in found.items():
            read = lambda box, path=path: source.read(module, path, box)  # noqa: E731
            name = place_in_item(module, kind, path)[1]
            write_array(folder, name, info.shape, info.dtype, source.stacks(module, path), read)
    write_metadata(folder, [(kind, *path.split("/")) for kind, found in kinds.items() for path in found])


def _described(kinds: dict[str, Kinds]) -> dict[str, Any]:
    return {
        module: {
            kind: {path: {"shape": list(info.shape), "dtype": info.dtype.name} for path, info in found.items()}
            for kind, found in arrays.items()
        }
        for module, arrays in kinds.items()
    }


def _plain(tree: Any) -> Any:
    """Lists in the place of tuples, which YAML does not know."""
    if isinstance(tree, dict):
        return {key: _plain(each) for key, each in tree.items()}
    return [_plain(each) for each in tree] if isinstance(tree, list | tuple) else tree
