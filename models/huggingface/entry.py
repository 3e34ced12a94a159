"""Map tensors of a checkpoint to our arrays and back, by a list of entries made from a model's config.

An entry moves numbers and changes none: transposes, reshapes, splits and joins alone, so that out of a checkpoint
and back is byte for byte the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

Tensors = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """One of our arrays, or a part of it.

    Attributes:
        path: path in the module's state, e.g. "layers/block/attention/query/kernel".
        index: where in its leading dims, e.g. (layer of the stack, expert); () for all of it.
    """

    path: str
    index: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Tensors of a checkpoint and what they are to us.

    Attributes:
        names: names of the checkpoint's tensors.
        slots: our arrays.
        read: (one array a name) -> one a slot.
        write: (one array a slot) -> one a name.
    """

    names: tuple[str, ...]
    slots: tuple[Slot, ...]
    read: Callable[..., Tensors]
    write: Callable[..., Tensors]


def same(name: str, path: str, *index: int) -> Entry:
    """Return the entry of a tensor that is as we have it."""
    return Entry(
        names=(name,), slots=(Slot(path=path, index=index),), read=lambda given: (given,), write=lambda ours: (ours,)
    )


def reshaped(name: str, path: str, *index: int, theirs: tuple[int, ...], ours: tuple[int, ...]) -> Entry:
    """Return the entry of a tensor that we have in another shape, its numbers in the same order."""
    return Entry(
        names=(name,),
        slots=(Slot(path=path, index=index),),
        read=lambda given: (given.reshape(ours),),
        write=lambda array: (array.reshape(theirs),),
    )


def kernel(name: str, path: str, *index: int, ins: tuple[int, ...], outs: tuple[int, ...]) -> Entry:
    """Return the entry of a linear map, theirs [out, in], ours [*ins, *outs]."""
    return Entry(
        names=(name,),
        slots=(Slot(path=path, index=index),),
        read=lambda given: (given.T.reshape(*ins, *outs),),
        # A view: who writes it to a file makes it row-major, a piece at a time.
        write=lambda ours: (ours.reshape(math.prod(ins), math.prod(outs)).T,),
    )
