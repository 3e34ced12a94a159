"""Programs by what they are made for, so that steps for batches of several shapes share those that are equal."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import jax

T = TypeVar("T")


class MadePrograms:
    """Makes each program once for all steps of a trainer: so it is traced and compiled once."""

    def __init__(self) -> None:
        self._made: dict[Hashable, object] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made for a key, which holds all that the steps of one trainer may differ in."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def key_of(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Hashable:
    """Return what tells arrays by name from others: shapes, dtypes and shardings."""
    return tuple((name, aval.shape, aval.dtype, aval.sharding) for name, aval in sorted(shapes.items()))
