"""The second part of a stage's backward, compiled: what adds the gradients of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from hetjax.compilation.dispatch_order import in_order
from hetjax.programs.split_backward.halves import SplitBackward
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import Shapes, Stage

Pending = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
"""What the first part leaves to be read: arguments of the backward, and crossing values."""


class WeightProgram:
    """Adds gradients of weights to those of other microbatches; one program, or several on some devices.

    The CPU backend goes on behind a loop before the loop has ended, unless what comes next reads of it. Collectives
    of both then meet each other's on other devices: they mix up, or wait forever (seen on jax 0.10.2: a layer loop and
    the embedding's gradient, with fsdp and context). In a whole backward each reads what the one before made. In this
    part the loop over layers and the rest have nothing to do with each other, so that on several CPU devices each
    is a program of its own.

    Args:
        parts: the backward in two.
        arguments: shapes of all its arguments, flattened.
        crossing: shapes of the crossing values as the first part leaves them.
    """

    def __init__(
        self, parts: SplitBackward, stage: Stage, arguments: Sequence[Any], crossing: Sequence[jax.ShapeDtypeStruct]
    ):
        mesh, gradients = stage.mesh, stage.gradients
        apart = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
        self._pieces = parts.later_apart if apart else (parts.later,)
        # The gradients leave the split backward as the leaves of a dict.
        self._paths = tuple(tuple(sorted(gradients)[place] for place in piece.outputs) for piece in self._pieces)
        self.reads = tuple(sorted({place for piece in self._pieces for place in piece.reads}))
        self.compiled = tuple(
            _compile(
                piece,
                [arguments[place] for place in piece.reads],
                [crossing[place] for place in piece.crossing],
                {path: gradients[path] for path in paths},
            )
            for piece, paths in zip(self._pieces, self._paths, strict=True)
        )
        self._programs = tuple(in_order(program, mesh) for program in self.compiled)

    def __call__(self, pending: Pending, gradients: Arrays) -> Arrays:
        """Dispatch; `pending` has the arguments at `reads`. Consumes `gradients`."""
        read, crossing = dict(zip(self.reads, pending[0], strict=True)), pending[1]
        added: Arrays = {}
        for piece, paths, program in zip(self._pieces, self._paths, self._programs, strict=True):
            taken = [read[place] for place in piece.reads], [crossing[place] for place in piece.crossing]
            added.update(program(*taken, {path: gradients[path] for path in paths}))
        return added


def _compile(piece: Any, read: list[Any], crossing: list[Any], gradients: Shapes) -> Any:
    def add(read, crossing, gradients: Arrays) -> Arrays:
        new = piece(read, crossing)
        return {
            path: gradient + made.astype(gradient.dtype)
            for (path, gradient), made in zip(sorted(gradients.items()), new, strict=True)
        }

    shardings = {path: aval.sharding for path, aval in gradients.items()}
    return jax.jit(add, donate_argnums=2, out_shardings=shardings).lower(read, crossing, gradients).compile()
