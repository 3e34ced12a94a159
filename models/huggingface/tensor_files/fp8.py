"""Quantize to FP8: a weight as E4M3 numbers with one float32 scale, as ModelOpt exports it; read scales of blocks, too.

E4M3 (Micikevicius et al. 2022) has 3 bits of mantissa, normal numbers from 2**-6 to 448 and below them steps of 2**-9.
With the scale s = amax / 448 nothing saturates, and to nearest, ties to even,

    |w - s·q| <= max(2**-4 · |w|, 2**-10 · s):

half a step of the mantissa of a normal number, half a step below them.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

LARGEST = 448.0
"""The largest E4M3 number."""

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)

# Numbers that are turned at once: what a conversion takes beside its input and output.
_BLOCK = 1 << 18


def fp8_scale(weight: np.ndarray) -> np.ndarray:
    """Return the float32 scale of a weight, amax / 448; 1 for a weight of zeros."""
    amax = largest(weight)
    return np.asarray(amax / np.float32(LARGEST) if amax else 1.0, np.float32)


def quantize_fp8(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the E4M3 numbers nearest to weight / scale, in the weight's shape."""
    quantized = np.empty(weight.shape, E4M3)
    for rows in row_blocks(weight.shape):
        ratio = weight[rows].astype(np.float32) / scale
        quantized[rows] = np.clip(ratio, -LARGEST, LARGEST).astype(E4M3)
    return quantized


def dequantize_fp8(quantized: np.ndarray, scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return quantized · scale, computed in float32, in `dtype`."""
    weight = np.empty(quantized.shape, dtype)
    for rows in row_blocks(quantized.shape):
        weight[rows] = (quantized[rows].astype(np.float32) * np.float32(scale)).astype(dtype)
    return weight


def dequantize_fp8_blocks(
    quantized: np.ndarray, scales: np.ndarray, block: tuple[int, int], dtype: np.dtype
) -> np.ndarray:
    """Return a weight [out, in] whose `block` of rows and columns shares a scale, computed in float32, in `dtype`.

    `scales` is [ceil(out / block rows), ceil(in / block columns)]; the blocks at the end may be cut short.
    """
    (height, width), (out, columns) = block, quantized.shape
    scales = np.asarray(scales, np.float32)
    weight = np.empty(quantized.shape, dtype)
    for rows in row_blocks(quantized.shape):
        by_row = scales[np.arange(rows.start, min(rows.stop, out)) // height]
        factors = np.repeat(by_row, width, axis=1)[:, :columns]
        weight[rows] = (quantized[rows].astype(np.float32) * factors).astype(dtype)
    return weight


def largest(weight: np.ndarray) -> np.float32:
    """Return the largest magnitude."""
    found = [np.abs(weight[rows].astype(np.float32)).max(initial=0.0) for rows in row_blocks(weight.shape)]
    return np.float32(max(found, default=0.0))


def row_blocks(shape: tuple[int, ...]) -> list[slice]:
    """Return slices along an array's first dim of at most 2**18 numbers, or one index."""
    rows = max(1, _BLOCK * shape[0] // max(1, int(np.prod(shape))))
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]
