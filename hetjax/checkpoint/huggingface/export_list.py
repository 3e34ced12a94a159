"""Lists the tensors that one of our checkpoints is exported to, and writes them one by one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hetjax.checkpoint.merged_weights import Weights
from hetjax.errors import ConfigError
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.checkpoint import wanted_dtype
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.entry_shapes import name_infos
from hetjax.models.huggingface.family import Configs, Family
from hetjax.models.huggingface.tensor_files.precision import quantized_forms
from hetjax.models.huggingface.tensor_files.quantized import Form, quantized_infos, quantized_tensors
from hetjax.models.huggingface.tensor_files.shards import ShardWriter
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo


class ExportList:
    """The tensors of a Hugging Face checkpoint that are made of our arrays.

    Args:
        source: the checkpoint that holds the arrays.
        family: the modules, and the names of their tensors.
        configs: the config of each module.
        dtype: dtype of the tensors of floats, but for those that the family keeps in float32; None for that of ours.
        quantize: the release whose modules are quantized; None for none.

    Attributes:
        entries: which tensors are made of which arrays, by module.
        plain: shape and dtype of each tensor before it is quantized.
        forms: the form of each tensor that is quantized.
        infos: shape and dtype of every tensor that is written, scales included.

    Raises ConfigError where the checkpoint lacks a module or an array, or has one in another shape, and ModelError
    where nothing can be quantized as asked.
    """

    def __init__(
        self,
        source: Weights,
        family: Family,
        configs: Configs,
        dtype: np.dtype | None,
        quantize: Form | None,
    ):
        self._source, self._family, self._dtype = source, family, dtype
        self.entries = family.entries(configs)
        self.plain: dict[str, TensorInfo] = {}
        for module, entries in self.entries.items():
            held = _checked(source, family, module, configs, entries)
            for entry in entries:
                slots = [_part(held[slot.path], len(slot.index)) for slot in entry.slots]
                for name, info in zip(entry.names, name_infos(entry, slots), strict=True):
                    kind = wanted_dtype(info.dtype, dtype, family.keeps_float32(name))
                    self.plain[name] = TensorInfo(info.shape, kind)
        self.forms: dict[str, Form] = {}
        if quantize is not None:
            matrices = [name for name, info in self.plain.items() if len(info.shape) == 2]
            self.forms = quantized_forms(matrices, quantize, family.language_prefix)
        self.infos: dict[str, TensorInfo] = {}
        for name, info in self.plain.items():
            self.infos |= quantized_infos(name, info, self.forms[name]) if name in self.forms else {name: info}

    def write(self, writer: ShardWriter, input_scales: Mapping[str, np.ndarray]) -> None:
        """Write every tensor, those of one of our arrays after another, so that each is opened once."""
        ordered = [(module, entry) for module, entries in self.entries.items() for entry in entries]
        ordered.sort(key=lambda each: (each[0], each[1].slots[0].path, each[1].slots[0].index))
        for module, entry in ordered:
            self._write_entry(module, entry, writer, input_scales)

    def _write_entry(
        self, module: str, entry: Entry, writer: ShardWriter, input_scales: Mapping[str, np.ndarray]
    ) -> None:
        """A function of its own, so that nothing of one entry is held while the next is read."""
        infos = self._source.infos(module)
        parts = entry.write(*(self._read(module, slot.path, slot.index, infos[slot.path]) for slot in entry.slots))
        for name, tensor in zip(entry.names, parts, strict=True):
            if name in self.forms:
                scale = input_scales.get(f"{name.removesuffix('.weight')}.input_scale")
                for part, array in quantized_tensors(name, tensor, self.forms[name], scale).items():
                    writer.write(part, array)
            else:
                writer.write(name, tensor, cast=True)

    def _read(self, module: str, path: str, index: tuple[int, ...], info: TensorInfo) -> np.ndarray:
        box = [slice(at, at + 1) for at in index] + [slice(0, size) for size in info.shape[len(index) :]]
        return self._source.read(module, path, tuple(box)).reshape(info.shape[len(index) :])


def _part(info: TensorInfo, stacks: int) -> TensorInfo:
    return TensorInfo(info.shape[stacks:], info.dtype)


def _checked(
    source: Weights, family: Family, module: str, configs: Configs, entries: list[Entry]
) -> dict[str, TensorInfo]:
    """The arrays of a module in the checkpoint, checked to be all that the entries take."""
    if module not in source.modules:
        raise ConfigError(
            f"{source.name} has no module '{module}', which family '{family.name}' consists of; its modules are "
            f"{', '.join(source.modules)}"
        )
    held, ours = source.infos(module), arrays_by_path(family.module(module, configs))
    for path in dict.fromkeys(slot.path for entry in entries for slot in entry.slots):
        shape = held[path].shape if path in held else None
        if shape != tuple(ours[path].shape):
            has = "lacks it" if shape is None else f"has it in shape {shape}"
            raise ConfigError(
                f"module '{module}': config.json makes {path} of shape {tuple(ours[path].shape)}, but {source.name} "
                f"{has}; give --like a folder of the same model"
            )
    return held
