"""FLOPs of convolutions in compiled programs: XLA's own, and those that cuDNN runs."""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

import numpy as np

from hetjax.compilation.hlo.shapes import Shape

_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")


class _WindowDim(NamedTuple):
    """One spatial dim: taps of the kernel, and how they move over the input."""

    size: int
    stride: int
    before: int
    input_dilation: int
    kernel_dilation: int


def convolution_flops(attributes: str, left: Shape, right: Shape, result: Shape) -> int:
    """Return two FLOPs for each product of a convolution of `left` with the kernel `right`.

    Taps that fall on padding, or between the elements of a dilated input, are no products.

    Raises ValueError where the text does not name the dims.
    """
    labels = _LABELS.search(attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {attributes[:300]}")
    of_input, of_kernel, of_result = labels.groups()
    spatial = sorted(label for label in of_kernel if label.isdigit())
    taps = math.prod(
        _taps(left.dims[of_input.index(label)], result.dims[of_result.index(label)], dim)
        for label, dim in zip(spatial, _window(attributes, len(spatial)), strict=True)
    )
    # Channels of the kernel are those of one group, so grouped convolutions need no correction.
    channels = right.dims[of_kernel.index("i")]
    return 2 * result.dims[of_result.index("b")] * result.dims[of_result.index("f")] * channels * taps


def _window(attributes: str, dims: int) -> list[_WindowDim]:
    """Read `window={size=3x3 stride=2x2 pad=0_1x0_1 lhs_dilate=2x2 rhs_dilate=2x2}`; any part of it may be missing."""
    found = _WINDOW.search(attributes)
    parts = dict(part.split("=") for part in found[1].split()) if found else {}

    def numbers(name: str, default: str) -> list[int]:
        return [
            int(number.split("_")[0]) for number in parts.get(name, "x".join([default] * dims)).split("x") if number
        ]

    names = (("size", "1"), ("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))
    return [_WindowDim(*dim) for dim in zip(*(numbers(*name) for name in names), strict=True)]


@functools.cache
def _taps(inputs: int, outputs: int, dim: _WindowDim) -> int:
    """Return how many taps of one spatial dim, over all outputs, fall on an element of the input."""
    starts = np.arange(outputs) * dim.stride - dim.before
    last = (inputs - 1) * dim.input_dilation
    count = 0
    for tap in range(dim.size):
        at = starts + tap * dim.kernel_dilation
        count += int(((at >= 0) & (at <= last) & (at % dim.input_dilation == 0)).sum())
    return count
