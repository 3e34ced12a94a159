"""Convert models that fit into memory as a whole, by the entries that conversions go through one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from hetjax.models.huggingface.entry import Entry


def read_arrays(
    entries: Iterable[Entry],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, np.ndarray | jax.Array | jax.ShapeDtypeStruct],
) -> dict[str, np.ndarray]:
    """Return all our arrays, by path, from a checkpoint's tensors; `shapes` has the shape of each path.

    For models that fit into memory as a whole; others go tensor by tensor. Raises KeyError for a tensor that lacks.
    """
    arrays: dict[str, np.ndarray] = {}
    for entry in entries:
        parts = entry.read(*(np.asarray(tensors[name]) for name in entry.names))
        for slot, part in zip(entry.slots, parts, strict=True):
            if slot.path not in arrays:
                arrays[slot.path] = np.zeros(shapes[slot.path].shape, part.dtype)
            arrays[slot.path][slot.index] = part
    return arrays


def write_tensors(entries: Iterable[Entry], arrays: Mapping[str, np.ndarray | jax.Array]) -> dict[str, np.ndarray]:
    """Return all tensors of a checkpoint, by name, from our arrays by path."""
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        parts = entry.write(*(np.asarray(arrays[slot.path])[slot.index] for slot in entry.slots))
        # Row-major: the safetensors library writes memory as it lies, whatever its strides.
        tensors.update(zip(entry.names, (np.asarray(part, order="C") for part in parts), strict=True))
    return tensors
