"""Write tensors to safetensors shards with an index, one by one and in any order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.tensor_files.tensors import DTYPES, INDEX, SINGLE, TensorInfo, listed

SHARD_BYTES = 5_000_000_000
"""Most bytes of a shard, unless one tensor alone has more."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 1 << 22


class ShardWriter:
    """Writes tensors announced beforehand; headers and places are settled before the first one comes.

    Args:
        folder: where the files go; it exists.
        tensors: shape and dtype of every tensor by name, in the order of the files.
        shard_bytes: most bytes of a shard.

    A context: leaving it without an error writes the index, or raises ModelError when a tensor has not come.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, TensorInfo], *, shard_bytes: int = SHARD_BYTES):
        self.folder, self._tensors = Path(folder), dict(tensors)
        shards = plan_shards(self._tensors, shard_bytes)
        self.paths = [self.folder / name for name in _file_names(len(shards))]
        self._places: dict[str, tuple[Path, int]] = {}
        self._lacking = set(self._tensors)
        for path, names in zip(self.paths, shards, strict=True):
            self._begin(path, names)

    def _begin(self, path: Path, names: list[str]) -> None:
        """Write a shard's header, and give the file its full length."""
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            info = self._tensors[name]
            header[name] = {
                "dtype": _NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [offset, offset + info.nbytes],
            }
            offset += info.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
        for name in names:
            self._places[name] = path, 8 + len(text) + header[name]["data_offsets"][0]

    def write(self, name: str, array: np.ndarray, *, cast: bool = False) -> None:
        """Write one tensor, piece by piece, in any layout in memory; with `cast` in the dtype that was announced.

        Raises ModelError when it is not of the shape and dtype that it was announced with.
        """
        info = self._tensors[name]
        if (array.shape, info.dtype if cast else array.dtype) != (info.shape, info.dtype):
            raise ModelError(
                f"tensor {name} is {array.dtype}{list(array.shape)}, but {info.dtype}{list(info.shape)} was announced"
            )
        path, place = self._places[name]
        with path.open("r+b") as file:
            file.seek(place)
            for piece in _pieces(array):
                file.write(np.ascontiguousarray(piece, info.dtype).reshape(-1).view(np.uint8))
        self._lacking.discard(name)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            return
        if self._lacking:
            raise ModelError(f"{self.folder}: nobody wrote {listed(sorted(self._lacking))}")
        if len(self.paths) > 1:
            total = sum(info.nbytes for info in self._tensors.values())
            weight_map = {name: path.name for name, (path, _) in self._places.items()}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def plan_shards(tensors: Mapping[str, TensorInfo], shard_bytes: int) -> list[list[str]]:
    """Return the tensors of each shard, in the order given; one at least."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, info in tensors.items():
        if shards[-1] and filled + info.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += info.nbytes
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _pieces(array: np.ndarray) -> list[np.ndarray]:
    """Slices of an array, so that one which lies another way in memory is not copied as a whole."""
    if array.ndim < 2 or array.nbytes <= _PIECE:
        return [array]
    rows = max(1, _PIECE * len(array) // array.nbytes)
    return [array[start : start + rows] for start in range(0, len(array), rows)]
