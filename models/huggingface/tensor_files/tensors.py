"""Read the tensors of a Hugging Face checkpoint one by one: safetensors files, mapped into memory.

A safetensors file is 8 bytes with the length of a JSON header (little endian), the header with dtype, shape
and byte range of every tensor, and the tensors' bytes, row-major. numpy alone cannot name its 16- and 8-bit floats,
so the files are read here by their headers, with the dtypes of `ml_dtypes`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.tensor_files.json_file import read_json
from hetjax.models.json_values import JsonObject

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Our dtypes by the names that a header uses."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_LONGEST_HEADER = 100_000_000


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a tensor is, without its numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """One safetensors file. Raises ModelError, on opening, for one that is cut short or malformed."""

    def __init__(self, path: Path):
        self.path = path
        header, self._start = _read_header(path)
        header.pop("__metadata__", None)
        self.tensors: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        size = path.stat().st_size - self._start
        for name, entry in header.items():
            try:
                info = TensorInfo(tuple(entry["shape"]), DTYPES[entry["dtype"]])
                first, last = entry["data_offsets"]
            except (KeyError, TypeError, ValueError):
                raise ModelError(
                    f"{path}: tensor {name} is described as {entry}, which this version does not read"
                ) from None
            if last - first != info.nbytes or first < 0:
                raise ModelError(
                    f"{path}: tensor {name} of shape {info.shape} and dtype {info.dtype} takes {info.nbytes} bytes, "
                    f"but the header gives it {last - first}; the file is damaged, fetch it again"
                )
            if last > size:
                raise ModelError(
                    f"{path}: cut short: tensor {name} ends at byte {last} of the data, but there are {size}; "
                    "fetch the file again"
                )
            self.tensors[name], self._offsets[name] = info, first

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, mapped: its bytes are read where they are used, and let go with the last view."""
        info = self.tensors[name]
        if not info.nbytes:
            return np.zeros(info.shape, info.dtype)
        # A mapping of its own: pages count as this process's memory for as long as they are mapped.
        return np.memmap(self.path, info.dtype, "r", self._start + self._offsets[name], info.shape or (1,)).reshape(
            info.shape
        )


class CheckpointTensors(Mapping[str, np.ndarray]):
    """All tensors of a checkpoint by name: of model.safetensors, else of shards with an index, else of the only file.

    The order is that of transformers: an index or other safetensors files beside model.safetensors are left alone.
    Raises ModelError where the folder, a shard or a tensor of the index is missing, or a file is malformed.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index = self.folder / INDEX
        if index.exists() and not (self.folder / SINGLE).exists():
            self._file_of = self._indexed(index)
        else:
            file = SafetensorsFile(self._only_file())
            self._file_of = dict.fromkeys(file.tensors, file)

    def _only_file(self) -> Path:
        paths = sorted(self.folder.glob("*.safetensors"))
        if self.folder / SINGLE in paths:
            return self.folder / SINGLE
        if len(paths) != 1:
            found = ", ".join(path.name for path in paths) or "no *.safetensors"
            raise ModelError(
                f"{self.folder} holds {found}, but neither {SINGLE} nor {INDEX}; give the folder of a checkpoint, with "
                "either of them or with one safetensors file"
            )
        return paths[0]

    def _indexed(self, index: Path) -> dict[str, SafetensorsFile]:
        try:
            weight_map = read_json(index)["weight_map"]
        except KeyError as error:
            raise ModelError(f"{index} is no index with a weight_map ({error}); fetch it again") from None
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ModelError(f"{index} is no index: its weight_map must give a file for each tensor; fetch it again")
        outside = sorted(shard for shard in set(weight_map.values()) if Path(shard).name != shard)
        if outside:
            raise ModelError(f"{index} names {listed(outside)}, and not files of its own folder; fetch it again")
        missing = sorted(shard for shard in set(weight_map.values()) if not (self.folder / shard).exists())
        if missing:
            raise ModelError(f"{index} names {listed(missing)}, which the folder lacks; fetch the missing shards")
        files = {shard: SafetensorsFile(self.folder / shard) for shard in sorted(set(weight_map.values()))}
        for name, shard in weight_map.items():
            if name not in files[shard].tensors:
                raise ModelError(f"{index} puts tensor {name} into {shard}, which does not hold it; fetch both again")
        return {name: files[shard] for name, shard in weight_map.items()}

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor. Raises KeyError for an unknown one."""
        return self._file_of[name].tensors[name]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of[name].read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of


def listed(names: list[str], limit: int = 8) -> str:
    """Return some names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _read_header(path: Path) -> tuple[JsonObject, int]:
    """(the header, where the data begins)."""
    if not path.is_file():  # a pipe would be waited for
        raise ModelError(f"{path} is no regular file; fetch it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ModelError(
                f"{path}: no safetensors file, or cut short: its header would take {length} bytes of {size}; "
                "fetch the file again"
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise ModelError(f"{path}: the header is no JSON; fetch the file again") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the header is no JSON object; fetch the file again")
    return header, 8 + length
