"""Runs a module's method `end_of_step()` on its own state, once a step, after the last microbatch.

A forward program runs once a microbatch, so what it changes in a module's buffers (`nnx.Variable` other than
`nnx.Param`) depends on how the batch is split, unless it only collects. A module whose state follows the whole
batch collects in one buffer, and updates its state in `end_of_step`.
"""

from __future__ import annotations

from hetjax.compilation.compiled_program import Program
from hetjax.errors import GraphError
from hetjax.stages.flat_state import Arrays, flatten_module
from hetjax.stages.placed_shapes import shardings_of
from hetjax.stages.stage import Stage


class EndOfStep:
    """The program that runs a stage's `end_of_step` on its buffers; weights are there to be read, not to be changed.

    Attributes:
        programs: "end_of_step". Weights that are not read are no arguments of the compiled program.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        name, arguments = f"{stage.name} end_of_step", (stage.params, stage.buffers)
        self.programs = {
            "end_of_step": Program(name, self._end, stage.mesh, *arguments, out_shardings=shardings_of(stage.buffers))
        }

    @staticmethod
    def applies(stage: Stage) -> bool:
        """Whether the stage trains, has buffers, and its module has the method."""
        return stage.trains and bool(stage.buffers) and stage.ends_steps

    def _end(self, params: Arrays, buffers: Arrays) -> Arrays:
        module = self.stage.skeleton.assemble(params, buffers)
        with self.stage.in_force():
            module.end_of_step()
        skeleton, after_params, after = flatten_module(module)
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
        """Compile it. Raises GraphError where the method changes weights, or shapes of the state."""
        self.programs["end_of_step"].compile()
        return self

    def __call__(self, params: Arrays, buffers: Arrays) -> Arrays:
        """Dispatch: the buffers after the step."""
        return self.programs["end_of_step"](params, buffers)
