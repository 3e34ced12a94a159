"""Shapes as compiled programs write them: `bf16[8,16]{1,0:T(8,128)}`, alone or in tuples of tuples."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](\{[^}]*S\(5\))?")
_BITS = re.compile(r"\d+")


class Shape(NamedTuple):
    """An array of one device: dtype as XLA names it ("f32", "f8e4m3fn", "pred"), dims, whether its host holds it."""

    dtype: str
    dims: tuple[int, ...]
    on_host: bool = False

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """What it takes in memory; elements of four bits are packed."""
        bits = 8 if self.dtype == "pred" else int(_BITS.search(self.dtype)[0])
        return self.size * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


def shapes_in(written: str) -> tuple[Shape, ...]:
    """Return the arrays of a shape or tuple in the order in which they are written; tokens are no arrays.

    A dynamic dim (`<=8`) counts as its bound. Memory space 5 of a layout, `{1,0:S(5)}`, is the host's.
    """
    return tuple(
        Shape(dtype, tuple(int(size.removeprefix("<=")) for size in dims.split(",") if size), bool(on_host))
        for dtype, dims, on_host in _ARRAY.findall(written)
    )


def parts_of(written: str) -> list[str]:
    """Return the parts of `(a, (b, c), d)`: "a", "(b, c)", "d"; commas between brackets of any kind do not count."""
    parts, depth = [""], 0
    for letter in written[1:-1] if written.startswith("(") else written:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
