"""Choose the axes that split a weight's optimizer state beyond those that split the weight itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

Axes = tuple[str, ...]

#: Axes along which weights are copied, outermost first: they split tokens, and of weights the experts alone.
COPY_AXES = ("data", "expert", "context")


def kept_axes(degrees: Mapping[str, int], copies: int) -> Axes | None:
    """Return those of the axes with these degrees along which `copies` copies stay; None where none have that product.

    Outermost ones first, so that what the optimizer sends stays among neighbours.
    """
    axes = [axis for axis in COPY_AXES if degrees.get(axis, 1) > 1]
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            if math.prod(degrees[axis] for axis in chosen) == copies:
                return chosen
    return None


def possible_copies(degrees: Mapping[str, int]) -> list[int]:
    """Return the numbers of copies for which `kept_axes` finds axes, in order."""
    sizes = [degrees[axis] for axis in COPY_AXES if degrees.get(axis, 1) > 1]
    chosen = itertools.chain.from_iterable(itertools.combinations(sizes, count) for count in range(len(sizes) + 1))
    return sorted({math.prod(each) for each in chosen})


def divided_axes(
    split: Sequence[Axes], dims: Sequence[str | None], shape: Sequence[int], spare: Axes, degrees: Mapping[str, int]
) -> tuple[Axes, ...]:
    """Return the axes of each dim of an optimizer's array, from those that split the weight and the axes to spare.

    Of a matrix the dim "embed" is divided, as far as it divides; without that name the largest dim that does. The dims
    "layers" are left alone, and so are vectors and what is as small, of a dim "width": it takes longer to gather them
    than to hold them.
    """
    matrix = [i for i, dim in enumerate(dims) if dim != "layers"]
    result = [tuple(axes) for axes in split]
    if len(matrix) < 2 or "width" in dims:
        return tuple(result)
    named = [i for i in matrix if dims[i] == "embed"]
    candidates = named or sorted(matrix, key=lambda i: -shape[i])
    taken = {axis for axes in split for axis in axes}
    # Data comes last: its shards add gradients up by themselves, in parts that are divided further once a step.
    for axis in reversed([axis for axis in spare if axis not in taken]):
        for i in candidates:
            degree = math.prod(degrees[each] for each in result[i]) * degrees[axis]
            if shape[i] % degree == 0:
                result[i] += (axis,)
                break
    return tuple(result)
