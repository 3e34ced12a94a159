"""Find the shapes of an entry's arrays without their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.tensor_files.tensors import TensorInfo

# Numbers of stand-ins are never read: one byte in all of them.
_STAND_IN = np.zeros((), np.uint8)


def slot_infos(entry: Entry, tensors: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    """Return what an entry makes of its tensors, one for each slot; they have the dtype of the first tensor.

    Raises ModelError where the tensors have no shape that it can take.
    """
    given = [tensors[name] for name in entry.names]
    return _through(entry.read, given, entry.names)


def name_infos(entry: Entry, slots: Sequence[TensorInfo]) -> list[TensorInfo]:
    """Return what an entry writes for parts of ours, one for each slot."""
    return _through(entry.write, slots, [slot.path for slot in entry.slots])


def _through(function: Callable[..., Sequence[np.ndarray]], given: Sequence[TensorInfo], names: Sequence[str]):
    try:
        made = function(*(np.broadcast_to(_STAND_IN, info.shape) for info in given))
    except (ValueError, IndexError) as error:
        shapes = ", ".join(f"{name} of shape {info.shape}" for name, info in zip(names, given, strict=True))
        raise ModelError(
            f"{shapes} does not fit the sizes in config.json ({error}); they are of different models"
        ) from None
    # An entry that settles a dtype itself, as of a count, is asked for it.
    return [TensorInfo(part.shape, given[0].dtype if part.dtype == np.uint8 else part.dtype) for part in made]
