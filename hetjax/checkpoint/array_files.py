"""Writes and reads the arrays of a checkpoint's item part by part, without devices, in the format of Orbax.

A conversion never holds a whole array: it writes chunk by chunk, and Orbax restores what it wrote like anything else.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorstore

from hetjax.state.weight_source import Box

CHUNK_BYTES = 4 << 20
"""Most bytes of a chunk, unless a single vector along the last dim has more."""


def write_array(
    folder: Path, name: str, shape: Sequence[int], dtype: np.dtype, stacks: int, read: Callable[[Box], np.ndarray]
) -> None:
    """Write an array chunk by chunk, as `read` gives its parts.

    `stacks` is the number of leading dims that are stacked over layers or experts, of which a chunk holds one each. At
    most a chunk is on its way to the disk while the next is read.
    """
    chunks = chunk_shape(shape, dtype, stacks)
    store = tensorstore.open(
        {
            **_spec(folder, name),
            "metadata": {
                "shape": list(shape),
                "chunks": list(chunks),
                "dtype": _zarr_dtype(dtype),
                "compressor": {"id": "zstd", "level": 1},
            },
            # A conversion that is interrupted starts again: nothing is forced onto the disk before its end.
            "create": True,
            "delete_existing": True,
        }
    ).result()
    pending: deque[tuple[tensorstore.WriteFutures, int]] = deque()
    for box in boxes(shape, chunks):
        part = read(box)
        pending.append((store[box].write(part), part.nbytes))
        while sum(size for _, size in pending) > CHUNK_BYTES:
            pending.popleft()[0].result()
    for write, _ in pending:
        write.result()


def write_metadata(folder: Path, paths: Iterable[Sequence[str]]) -> None:
    """Write the metadata that Orbax keeps beside an item's arrays: the keys in the tree that lead to each."""
    tree = {
        str(tuple(keys)): {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
        for keys in paths
    }
    metadata = {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (folder / "_METADATA").write_text(json.dumps(metadata))


class ArrayReader:
    """Reads parts of one array of an item; where a chunk holds several of its parts, it is kept for the next call."""

    def __init__(self, folder: Path, name: str):
        store = tensorstore.open({**_spec(folder, name), "open": True}).result()
        chunk = int(np.prod(store.chunk_layout.read_chunk.shape)) * store.dtype.numpy_dtype.itemsize
        layers = store.chunk_layout.read_chunk.shape[0] if store.rank else 1
        cache = tensorstore.Context({"cache_pool": {"total_bytes_limit": chunk + (1 << 16) if layers > 1 else 0}})
        self._store = tensorstore.open({**_spec(folder, name), "open": True}, context=cache).result()
        self._chunks = store.chunk_layout.read_chunk.shape

    def read(self, box: Box) -> np.ndarray:
        """Return a part of the array, put together chunk by chunk."""
        part = np.empty([each.stop - each.start for each in box], self._store.dtype.numpy_dtype)
        pieces = [_at_chunk_ends(each, size) for each, size in zip(box, self._chunks, strict=True)]
        for piece in itertools.product(*pieces):
            place = tuple(
                slice(inner.start - each.start, inner.stop - each.start) for inner, each in zip(piece, box, strict=True)
            )
            part[place] = self._store[piece].read().result()
        return part


def _at_chunk_ends(bounds: slice, size: int) -> list[slice]:
    """The part of a dim between two bounds, split where chunks of this size end."""
    ends = [*range((bounds.start // size + 1) * size, bounds.stop, size), bounds.stop]
    return [slice(start, stop) for start, stop in itertools.pairwise([bounds.start, *ends])]


def chunk_shape(shape: Sequence[int], dtype: np.dtype, stacks: int) -> tuple[int, ...]:
    """Return the shape of a chunk: one of each stack, and of the dims behind them what `CHUNK_BYTES` holds."""
    chunk = [1] * min(stacks, len(shape)) + list(shape[stacks:])
    for dim in range(stacks, len(shape)):
        size = int(np.prod(chunk)) * dtype.itemsize
        if size <= CHUNK_BYTES or dim >= len(shape) - 1:
            break
        chunk[dim] = max(1, chunk[dim] * CHUNK_BYTES // size)
    return tuple(max(1, size) for size in chunk)


def boxes(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[Box]:
    """Yield the chunks of an array, in row-major order."""
    pieces = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, chunks, strict=True)
    ]
    return itertools.product(*pieces)


def _spec(folder: Path, name: str) -> dict[str, object]:
    base = {"driver": "file", "path": f"{folder}/", "file_io_sync": False}
    return {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}


def _zarr_dtype(dtype: np.dtype) -> str:
    return "bfloat16" if dtype.name == "bfloat16" else dtype.newbyteorder("<").str
