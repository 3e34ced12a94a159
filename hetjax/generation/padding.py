"""Pad batches to as many samples as every module's batch degree divides."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np

from hetjax.stages.batch import Batch, module_inputs

Padded = TypeVar("Padded")


class ArraySignature(NamedTuple):
    """Module, input port, shape and dtype of one array of a batch."""

    module: str
    port: str
    shape: tuple[int, ...]
    dtype: str


Signature: TypeAlias = tuple[ArraySignature, ...]
"""The arrays of a batch: equal for batches that run the same programs."""


def padded_shapes(batch: Batch, degree: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of a batch once it is padded to a multiple of `degree` samples."""
    sizes = {np.shape(array)[:1] for inputs in module_inputs(batch).values() for array in inputs.values()}
    # Where the numbers of samples differ, the check of the batch reports them as they were given.
    degree = degree if len(sizes) == 1 else 1
    return _map_inputs(batch, lambda array: _padded_shape(array, degree))


def padded_batch(batch: Batch, degree: int) -> dict[str, dict[str, np.ndarray]]:
    """Return a batch on the host with its last sample repeated, up to a multiple of `degree` samples."""
    return _map_inputs(batch, lambda array: repeat_last(np.asarray(array), degree))


def repeat_last(array: np.ndarray, degree: int) -> np.ndarray:
    """Return an array with its last row repeated, up to a multiple of `degree` rows."""
    rows = np.arange(_padded_size(len(array), degree))
    return array[np.minimum(rows, len(array) - 1)]


def signature_of(shapes: Batch) -> Signature:
    """Return a key of the shapes of a batch; batches of one key run the same programs."""
    return tuple(
        ArraySignature(module, port, aval.shape, str(aval.dtype))
        for module, inputs in sorted(shapes.items())
        for port, aval in sorted(inputs.items())
    )


def _map_inputs(
    batch: Batch, function: Callable[[np.ndarray | jax.ShapeDtypeStruct], Padded]
) -> dict[str, dict[str, Padded]]:
    return {
        module: {port: function(array) for port, array in inputs.items()}
        for module, inputs in module_inputs(batch).items()
    }


def _padded_size(size: int, degree: int) -> int:
    return -(-size // degree) * degree


def _padded_shape(array: np.ndarray | jax.ShapeDtypeStruct, degree: int) -> jax.ShapeDtypeStruct:
    shape = np.shape(array)
    shape = (_padded_size(shape[0], degree), *shape[1:]) if shape else ()
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(array.dtype))
