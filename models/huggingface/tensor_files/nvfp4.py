"""Quantize to NVFP4: E2M1 numbers, two a byte, with an E4M3 scale for every 16 inputs and a float32 scale of all.

E2M1 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6. ModelOpt's scales: g = amax / (6 · 448) for the whole weight and
b = E4M3(amax of the block / 6 / g) for a block, so that a weight is b·g·q. With t = amax of the block / 6 / g before it
is rounded to b, and x = w / (b·g),

    |w - b·g·q| <= b·g · (0.25 where |x| <= 2, 0.5 where |x| <= 4, 1 beyond),

half the distance of the magnitudes around x. Beyond 6 the number saturates; there |x| <= 6 t/b, which is at most
6 / (1 - 2**-4) = 6.4 where b is a normal E4M3 number, so that 1 bounds this too. A block whose t is below 2**-6 has a
subnormal b, within 2**-10 of t: |x| can then reach 6·1.5 at b = 2**-9, and saturation costs 3·b·g at most. A t below
2**-9 is raised to that, the smallest E4M3 number, where ModelOpt's zero would lose the block.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.tensor_files.fp8 import E4M3, LARGEST, largest, row_blocks

BLOCK = 16
"""Inputs that share a scale."""

LARGEST_E2M1 = 6.0
SMALLEST_SCALE = 2.0**-9

_E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)
_VALUES = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def nvfp4_scale(weight: np.ndarray) -> np.ndarray:
    """Return the float32 scale of a whole weight, amax / (6 · 448); 1 for a weight of zeros."""
    amax = largest(weight)
    return np.asarray(amax / np.float32(LARGEST_E2M1 * LARGEST) if amax else 1.0, np.float32)


def quantize_nvfp4(weight: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (packed uint8 [out, in/2], block scales E4M3 [out, in/16]) of a weight [out, in].

    Of two neighbouring inputs the first is in the low nibble. Blocks of zeros have the scale 1, as in ModelOpt.
    Raises ModelError where the inputs do not divide into blocks.
    """
    rows, width = weight.shape
    if width % BLOCK:
        raise ModelError(
            f"a weight of {width} inputs has no NVFP4 form: inputs % {BLOCK} = {width % BLOCK} must be 0; "
            "leave its module out or change the width"
        )
    packed, scales = np.empty((rows, width // 2), np.uint8), np.empty((rows, width // BLOCK), E4M3)
    for block in row_blocks(weight.shape):
        blocks = weight[block].astype(np.float32).reshape(-1, width // BLOCK, BLOCK)
        amax = np.abs(blocks).max(axis=2)
        wanted = np.clip(amax / np.float32(LARGEST_E2M1) / scale, SMALLEST_SCALE, LARGEST)
        scales[block] = np.where(amax == 0, np.float32(1), wanted).astype(E4M3)
        ratio = blocks / (scales[block].astype(np.float32) * scale)[..., None]
        codes = ratio.astype(_E2M1).view(np.uint8).reshape(-1, width) & 0xF
        packed[block] = codes[:, ::2] | codes[:, 1::2] << 4
    return packed, scales


def dequantize_nvfp4(packed: np.ndarray, scales: np.ndarray, scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the weight [out, in], computed in float32, in `dtype`."""
    rows, width = packed.shape[0], 2 * packed.shape[1]
    weight = np.empty((rows, width), dtype)
    for block in row_blocks((rows, width)):
        codes = np.stack([packed[block] & 0xF, packed[block] >> 4], axis=-1)
        numbers = _VALUES[codes].reshape(-1, width // BLOCK, BLOCK)
        numbers *= (scales[block].astype(np.float32) * np.float32(scale))[..., None]
        weight[block] = numbers.reshape(-1, width).astype(dtype)
    return weight
