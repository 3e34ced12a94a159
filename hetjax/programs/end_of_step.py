"""What a module does to its own state once a step, after the last microbatch: its method `end_of_step()`.

A forward program runs once a microbatch, so what it changes in a module's buffers (`nnx.Variable` other than
`nnx.Param`) depends on how the batch is cut, unless it only collects. A module that moves its state by
what the whole batch gave collects it in a buffer, and moves its state in `end_of_step`.
"""

from __future__ import annotations

import jax

from hetjax.compilation.dispatch_order import in_order
from hetjax.errors import GraphError
from hetjax.stages.flat_state import Arrays, take_apart
from hetjax.stages.stage import Stage


class EndOfStep:
    """The program that runs a stage's `end_of_step` on its buffers; weights are there to be read, not to be changed."""

    def __init__(self, stage: Stage):
        self.stage = stage

    @staticmethod
    def applies(stage: Stage) -> bool:
        """Whether the stage trains, has buffers, and its module has the method."""
        return stage.trains and bool(stage.buffers) and stage.ends_steps

    def _end(self, params: Arrays, buffers: Arrays) -> Arrays:
        module = self.stage.skeleton.assemble(params, buffers)
        with self.stage.in_force():
            module.end_of_step()
        skeleton, after_params, after = take_apart(module)
        same = {path: (array.shape, array.dtype) for path, array in after.items()} == {
            path: (aval.shape, aval.dtype) for path, aval in self.stage.buffers.items()
        }
        if skeleton.paths != self.stage.skeleton.paths or not same:
            raise GraphError(
                f"module '{self.stage.module}': its end_of_step changed the paths, shapes or dtypes of its state; keep "
                "them as they were built"
            )
        changed = sorted(path for path, array in after_params.items() if array is not params[path])
        if changed:
            raise GraphError(
                f"module '{self.stage.module}': its end_of_step set weights ({', '.join(changed)}), which the "
                "optimizer alone changes; make them nnx.Variable of another kind than nnx.Param"
            )
        return after

    def compile(self) -> EndOfStep:
        """Compile it; weights that are not read are no arguments of the program."""
        shardings = {path: aval.sharding for path, aval in self.stage.buffers.items()}
        program = jax.jit(self._end, out_shardings=shardings)
        self._program = in_order(program.lower(self.stage.params, self.stage.buffers).compile(), self.stage.mesh)
        return self

    def __call__(self, params: Arrays, buffers: Arrays) -> Arrays:
        """Dispatch: the buffers after the step."""
        return self._program(params, buffers)
