"""The executors of a trainer, one for each set of shapes that a batch may have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetjax.errors import BatchError
from hetjax.execution.executor import Executor
from hetjax.stages.batch import Batch, module_inputs

Shapes = frozenset[tuple[str, tuple[int, ...]]]
"""The shape of every input of a batch, by "module.port"."""


class StepsByShape:
    """Compiled steps by the shapes of the batches that they take; the state that they train is the same.

    Args:
        batches: a batch, or its shapes, for each step.
        executors: the compiled steps, of which the first one is that of the largest batch.

    Attributes:
        first: the executor of the first batch.
        executors: all of them.

    Raises BatchError for two batches of the same shapes.
    """

    def __init__(self, batches: Sequence[Batch], executors: Sequence[Executor]):
        self._executors = {_shapes(batch): executor for batch, executor in zip(batches, executors, strict=True)}
        self.first, self.executors = executors[0], tuple(executors)
        if len(self._executors) < len(batches):
            raise BatchError(
                f"{len(batches)} batches are given to compile for, of {len(self._executors)} shapes; give each once"
            )

    def of(self, batch: Batch) -> Executor:
        """Return the step for a batch.

        Where only one was compiled it is that one, which says by itself what does not fit. Raises BatchError where
        none of several fits.
        """
        if len(self._executors) == 1:
            return self.first
        shapes = _shapes(batch)
        if shapes not in self._executors:
            nearest = max(self._executors, key=lambda known: len(known & shapes))
            raise BatchError(
                f"no program was compiled for this batch: of {len(self._executors)} sets of shapes the nearest has "
                f"{_listed(nearest - shapes)}, but the batch {_listed(shapes - nearest)}; give it one of the shapes"
            )
        return self._executors[shapes]


def _shapes(batch: Batch) -> Shapes:
    return frozenset(
        (f"{module}.{port}", tuple(np.shape(array)))
        for module, inputs in module_inputs(batch).items()
        for port, array in inputs.items()
    )


def _listed(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes)) or "nothing more"
