"""The second part of a stage's backward, compiled: it adds the gradients of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from hetjax.compilation.compiled_program import Program
from hetjax.programs.split_backward.halves import LaterPiece, SplitBackward
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import Stage


class PendingWeights(NamedTuple):
    """The arrays that the first part of one microbatch's backward leaves for the second.

    Attributes:
        arguments: arguments of the backward, those at `WeightProgram.reads`.
        crossing: values that the first part made and the second reads.
    """

    arguments: tuple[jax.Array, ...]
    crossing: tuple[jax.Array, ...]


class WeightProgram:
    """Adds gradients of weights to those of other microbatches; one program, or several on some devices.

    The CPU backend goes on behind a loop before the loop has ended, unless what comes next reads of it. Collectives
    of both then meet each other's on other devices: they mix up, or wait forever (seen on jax 0.10.2: a layer loop and
    the embedding's gradient, with fsdp and context). In a whole backward each reads what the one before made. In this
    part the loop over layers and the rest have nothing to do with each other, so that on several CPU devices each
    is a program of its own.

    Args:
        parts: the split backward.
        arguments: shapes of all its arguments, flattened.
        crossing: shapes of the crossing values as the first part leaves them.

    Attributes:
        programs: "backward_weight", or "backward_weight.0", ".1", ... where it is several.
        reads: which of the backward's arguments it takes, by their place among all, flattened.
    """

    def __init__(
        self,
        parts: SplitBackward,
        stage: Stage,
        arguments: Sequence[jax.ShapeDtypeStruct],
        crossing: Sequence[jax.ShapeDtypeStruct],
    ):
        mesh, gradients = stage.mesh, stage.gradients
        apart = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
        self._pieces = parts.later_apart if apart else (parts.later,)
        # The gradients leave the split backward as the leaves of a dict.
        self._paths = tuple(tuple(sorted(gradients)[place] for place in piece.outputs) for piece in self._pieces)
        self.reads = tuple(sorted({place for piece in self._pieces for place in piece.reads}))
        self.programs: dict[str, Program] = {}
        for index, (piece, paths) in enumerate(zip(self._pieces, self._paths, strict=True)):
            name = f"backward_weight.{index}" if len(self._pieces) > 1 else "backward_weight"
            self.programs[name] = Program(
                f"{stage.name} {name}",
                _adding(piece),
                mesh,
                [arguments[place] for place in piece.reads],
                [crossing[place] for place in piece.crossing],
                {path: gradients[path] for path in paths},
                donate=2,
                out_shardings={path: gradients[path].sharding for path in paths},
                nested_loops=stage.nests_layers,
            )

    def compile(self) -> WeightProgram:
        """Compile it."""
        for program in self.programs.values():
            program.compile()
        return self

    def __call__(self, pending: PendingWeights, gradients: Arrays) -> Arrays:
        """Dispatch: the gradients with those of a microbatch added. Consumes `gradients`."""
        read = dict(zip(self.reads, pending.arguments, strict=True))
        added: Arrays = {}
        for piece, paths, program in zip(self._pieces, self._paths, self.programs.values(), strict=True):
            taken = [read[place] for place in piece.reads], [pending.crossing[place] for place in piece.crossing]
            added.update(program(*taken, {path: gradients[path] for path in paths}))
        return added


def _adding(piece: LaterPiece) -> Callable[[Sequence[jax.Array], Sequence[jax.Array], Arrays], Arrays]:
    """Return the function that adds a piece's gradients to those of earlier microbatches."""

    def add(read: Sequence[jax.Array], crossing: Sequence[jax.Array], gradients: Arrays) -> Arrays:
        paths = sorted(gradients)
        return dict(zip(paths, piece(read, crossing, [gradients[path] for path in paths]), strict=True))

    return add
