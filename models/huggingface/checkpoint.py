"""Read a Hugging Face checkpoint as our modules' arrays, any part at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from hetjax.models.arrays import arrays_by_path
from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_values
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.entry_shapes import slot_infos
from hetjax.models.huggingface.families import find_family
from hetjax.models.huggingface.family import matches
from hetjax.models.huggingface.tensor_files.fp8 import row_blocks
from hetjax.models.huggingface.tensor_files.json_file import read_json
from hetjax.models.huggingface.tensor_files.quantized import FLOATS, PlainTensors
from hetjax.models.huggingface.tensor_files.tensors import CheckpointTensors, TensorInfo, listed
from hetjax.models.json_values import Json

Box = tuple[slice, ...]
"""A start and a stop in every dim of an array."""


class HuggingFaceCheckpoint:
    """The arrays of a checkpoint's modules, by path; nothing is read before it is asked for.

    Args:
        folder: config.json, and safetensors shards with an index, or one safetensors file.
        family: name of its family; None goes by `model_type`.
        dtype: dtype of the arrays of floats, but for those that the family keeps in float32; None leaves each as it
            is on the disk, and quantized weights become bfloat16.

    Raises ModelError for a folder that is no checkpoint of a family at hand.
    """

    def __init__(self, folder: Path, *, family: str | None = None, dtype: np.dtype | None = None):
        self.folder = Path(folder)
        self.hf = read_json(self.folder / "config.json")
        check_values(self.hf)
        self.dtype = dtype
        with self._described_by_config():
            find_family(self.hf, family)  # its errors come before those of files
            tensors = CheckpointTensors(self.folder)
            self.family = find_family(self.hf, family, tensors)
            self.configs = self.family.configs(self.hf)
            self.entries = self.family.entries(self.configs)
        self.tensors = PlainTensors(
            tensors,
            _quantization_config(self.hf),
            np.dtype(ml_dtypes.bfloat16) if dtype is None else dtype,
        )
        self._slots: dict[tuple[str, str], dict[tuple[int, ...], tuple[Entry, int]]] = {}
        for module, entries in self.entries.items():
            for entry in entries:
                for i, slot in enumerate(entry.slots):
                    self._slots.setdefault((module, slot.path), {})[slot.index] = entry, i
        self._last: tuple[Entry, tuple[np.ndarray, ...]] | None = None

    @contextlib.contextmanager
    def _described_by_config(self) -> Iterator[None]:
        """Whatever a value of another type in config.json brings about is the file's fault, wherever it shows."""
        try:
            yield
        except ModelError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ModelError(
                f"{self.folder / 'config.json'} describes no model of this family: {type(error).__name__}: {error}; "
                "compare it with the published one"
            ) from error

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.folder)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it holds."""
        return tuple(self.entries)

    def missing(self, modules: Collection[str]) -> list[str]:
        """Return the tensors of these modules that the checkpoint lacks."""
        return [n for m in modules for entry in self.entries[m] for n in entry.names if n not in self.tensors]

    def unexpected(self) -> list[str]:
        """Return the tensors that no module takes, beside those that the family or a quantized form explains."""
        taken = self._taken()
        return [name for name in self.tensors if name not in taken and not self._explained(name)]

    def kept(self) -> list[str]:
        """Return the tensors that no module of ours takes, and that a checkpoint converted back has to have."""
        taken = self._taken()
        return [name for name in self.tensors if name not in taken and self.family.keeps(name)]

    def _taken(self) -> set[str]:
        return {name for entries in self.entries.values() for entry in entries for name in entry.names}

    def _explained(self, name: str) -> bool:
        return self.family.keeps(name) or matches(self.family.ignored, name) or self._is_tied_head(name)

    def _is_tied_head(self, name: str) -> bool:
        """Whether a tensor is a copy of the embedding: some releases have it, and what loads them leaves it out."""
        llm = self.configs.get("llm")
        return llm is not None and llm.tie_embeddings and name == self.family.head_name

    def _check_tied_head(self) -> None:
        """Raise ModelError for a head that is no copy of the embedding which config.json ties it to."""
        head = self.family.head_name
        if head not in self.tensors or not self._is_tied_head(head):
            return
        name = next(entry.names[0] for entry in self.entries["llm"] if entry.slots[0].path == "embedding")
        if self.tensors.info(head).shape != self.tensors.info(name).shape or not _equal(
            self.tensors[head], self.tensors[name]
        ):
            raise ModelError(
                f"{self.folder}: {head} differs from {name}, though config.json says tie_word_embeddings = true; "
                "if the head was trained, set tie_word_embeddings to false there; if not, delete the tensor"
            )

    def infos(self, module: str) -> dict[str, TensorInfo]:
        """Return shape and dtype of every array of a module that the checkpoint fills.

        Raises ModelError for missing tensors, for those whose shapes do not fit config.json, and where the checkpoint
        leaves a weight of the module without numbers.
        """
        if missing := self.missing([module]):
            raise ModelError(
                f"{self.folder} lacks {len(missing)} tensors of module '{module}': {listed(missing)}; "
                "fetch the checkpoint again, or give the --family that it is of"
            )
        for name in self.tensors:
            if matches(self.family.ones, name) and (self.tensors[name] != 1).any():
                raise ModelError(f"{self.folder}: {name} is not all ones, and the model has no place for it")
        if module == "llm":
            self._check_tied_head()
        with self._described_by_config():
            ours = arrays_by_path(self.family.module(module, self.configs))
        found: dict[str, TensorInfo] = {}
        filled: dict[str, int] = {}
        for entry in self.entries[module]:
            given = {name: self.tensors.info(name) for name in entry.names}
            for slot, info in zip(entry.slots, slot_infos(entry, given), strict=True):
                whole = tuple(ours[slot.path].shape)
                if info.shape != whole[len(slot.index) :]:
                    given_shapes = ", ".join(f"{name} of shape {info.shape}" for name, info in given.items())
                    raise ModelError(
                        f"{self.folder}: {given_shapes} would be {info.shape} of {slot.path} {whole} in module "
                        f"'{module}'; config.json and shards are of different models"
                    )
                if np.issubdtype(ours[slot.path].dtype, np.floating) and info.dtype not in FLOATS:
                    raise ModelError(
                        f"{self.folder}: {', '.join(entry.names)} is {info.dtype}, a quantized form that is not read; "
                        "give the checkpoint that it was quantized from"
                    )
                found[slot.path] = TensorInfo(whole, self._dtype(entry, info.dtype))
                filled[slot.path] = filled.get(slot.path, 0) + 1
        for path, count in filled.items():
            depth = self.stacks(module, path)
            if count != np.prod(found[path].shape[:depth], dtype=int):
                raise ModelError(
                    f"module '{module}': {count} tensors for {path} {found[path].shape}: layers or experts are left"
                )
        return found

    def stacks(self, module: str, path: str) -> int:
        """Return how many leading dims an array has along which tensors are stacked: layers, experts."""
        return len(next(iter(self._slots[module, path])))

    def read(self, module: str, path: str, box: Box) -> np.ndarray:
        """Return a part of a module's array, in the dtype that `infos` gives it; no more is read than it takes."""
        slots, depth = self._slots[module, path], self.stacks(module, path)
        stacked, rest = box[:depth], box[depth:]
        whole = None
        for place in itertools.product(*(range(each.start, each.stop) for each in stacked)):
            entry, i = slots[place]
            part = self._parts(entry)[i][rest]
            part = part.astype(self._dtype(entry, part.dtype), copy=False)
            if all(each.stop - each.start == 1 for each in stacked):
                return part[(None,) * depth]
            if whole is None:
                whole = np.empty([each.stop - each.start for each in box], part.dtype)
            whole[tuple(at - each.start for at, each in zip(place, stacked, strict=True))] = part
        return whole

    def _parts(self, entry: Entry) -> tuple[np.ndarray, ...]:
        """What an entry makes of its tensors; the last one's are kept for the next call."""
        if self._last is None or self._last[0] is not entry:
            self._last = None  # let go first
            self._last = entry, tuple(entry.read(*(self.tensors[name] for name in entry.names)))
        return self._last[1]

    def _dtype(self, entry: Entry, dtype: np.dtype) -> np.dtype:
        return wanted_dtype(dtype, self.dtype, any(map(self.family.keeps_float32, entry.names)))


def _quantization_config(hf: Mapping[str, Json]) -> Mapping[str, Json]:
    """What config.json says of quantized weights, of the whole model or of its language model; {} for nothing."""
    parts = (hf, *(hf.get(key) or {} for key in ("text_config", "llm_config")))
    return next((part["quantization_config"] for part in parts if part.get("quantization_config")), {})


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers, of which few are in memory at once."""
    return all((one[rows] == other[rows]).all() for rows in row_blocks(one.shape))


def wanted_dtype(dtype: np.dtype, wanted: np.dtype | None, keeps: bool) -> np.dtype:
    """Return the dtype that an array is converted to: `wanted`, for one of floats that does not keep its own."""
    is_float = np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16
    return dtype if wanted is None or keeps or not is_float else np.dtype(wanted)
