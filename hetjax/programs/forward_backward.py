"""The forward and backward programs of one stage, each one jitted function on the stage's mesh."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
from jax.sharding import NamedSharding

from hetjax.compilation.compiled_program import Program
from hetjax.programs.residuals import Residuals
from hetjax.programs.split_backward.additions import adding_backward
from hetjax.programs.split_backward.halves import split_backward
from hetjax.programs.split_backward.weight_program import PendingWeights, WeightProgram
from hetjax.programs.stage_functions import Cotangents, StageFunctions
from hetjax.stages.flat_state import Arrays, Shapes
from hetjax.stages.placed_shapes import shardings_of
from hetjax.stages.stage import Stage


class ForwardBackward:
    """The forward and backward programs of a stage, first traced, then compiled.

    Of a stage that other processes run only the shapes are known. A stage without gradient outputs has no backward
    program. With `in_two_parts` the backward is two programs: `backward_input` and `backward_weight`.

    Args:
        stage, inputs, gradient_inputs, gradient_outputs, read: as for `StageFunctions`.
        in_two_parts: whether the schedule runs the backward in two parts.

    Attributes:
        functions: what the programs compute.
        programs: by name: "forward"; and once `compile` ran "backward", or else "backward_input" and
            "backward_weight" ("backward_weight.0", ".1", ... where that is several).
    """

    def __init__(
        self,
        stage: Stage,
        inputs: Shapes,
        *,
        gradient_inputs: tuple[str, ...],
        gradient_outputs: Mapping[str, int],
        read: Collection[str],
        in_two_parts: bool = False,
    ):
        self.stage, self.inputs = stage, inputs
        self.in_two_parts = in_two_parts
        self.functions = StageFunctions(stage, inputs, gradient_inputs, gradient_outputs, read)
        self.programs: dict[str, Program] = {}
        if not stage.is_local:
            return
        forward = Program(
            f"{stage.name} forward",
            self.functions.forward,
            stage.mesh,
            *self._forward_arguments,
            out_shardings=(shardings_of(self.functions.returned), shardings_of(stage.buffers), None),
            nested_loops=stage.nests_layers,
        )
        forward.trace()
        self.programs["forward"] = forward

    @property
    def outputs(self) -> Shapes:
        """Shape, dtype and sharding by output port."""
        return self.functions.outputs

    @property
    def gradient_inputs(self) -> tuple[str, ...]:
        """The input ports whose gradient is asked for."""
        return self.functions.gradient_inputs

    @property
    def gradient_outputs(self) -> Mapping[str, int]:
        """The number of gradients that arrive at each output port."""
        return self.functions.gradient_outputs

    @property
    def has_backward(self) -> bool:
        """Whether any gradient arrives, so that there is a backward program."""
        return self.functions.has_backward

    @property
    def residual_shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the arrays that the forward makes for the backward; with shardings once it is compiled."""
        forward = self.programs["forward"]
        return forward.outputs[2] if forward.is_compiled else forward.traced.out_info[2]

    @property
    def backward_shapes(self) -> tuple[Shapes, Residuals, Cotangents]:
        """Shapes of (params, residuals, cotangents) as backward programs take them, one in place of each array."""
        residuals = self.functions.residuals(*self._forward_arguments, self.residual_shapes)
        cotangents = {port: (self.outputs[port],) * count for port, count in self.gradient_outputs.items()}
        return self.stage.compute_params, residuals, cotangents

    @property
    def pending_shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of what `backward_weight` takes of one microbatch, weights aside; once compiled, in two parts."""
        arguments = jax.tree.leaves(self.backward_shapes)
        weights = len(jax.tree.leaves(self.stage.compute_params))
        _, crossing = self.programs["backward_input"].outputs
        return *(arguments[place] for place in self._weight_program.reads if place >= weights), *crossing

    @property
    def _forward_arguments(self) -> tuple[Shapes, Shapes, Shapes]:
        return self.stage.compute_params, self.stage.buffers, self.inputs

    # ── compilation ──────────────────────────────────────────────────────────────────────────────

    def compile(self) -> ForwardBackward:
        """Compile the forward program, then the backward program for the residuals as the forward lays them out."""
        self.programs["forward"].compile()
        if self.has_backward:
            (self._compile_split if self.in_two_parts else self._compile_backward)()
        return self

    @property
    def _carried_shardings(self) -> dict[str, NamedSharding]:
        return {port: self.inputs[port].sharding for port in self.gradient_inputs}

    def _compile_backward(self) -> None:
        stage, gradients, arguments = self.stage, self.stage.gradients, self.backward_shapes
        self.programs["backward"] = Program(
            f"{stage.name} backward",
            adding_backward(self.functions.gradients, arguments, gradients),
            stage.mesh,
            *arguments,
            gradients,
            donate=3,
            out_shardings=(shardings_of(gradients), self._carried_shardings),
            nested_loops=stage.nests_layers,
        ).compile()

    def _compile_split(self) -> None:
        stage, arguments = self.stage, self.backward_shapes
        parts = split_backward(self.functions.gradients, *arguments)
        first = Program(
            f"{stage.name} backward_input",
            parts.first,
            stage.mesh,
            *arguments,
            out_shardings=(self._carried_shardings, None),
            nested_loops=stage.nests_layers,
        ).compile()
        _, crossing = first.outputs
        self.programs["backward_input"] = first
        self._weight_program = WeightProgram(parts, stage, jax.tree.leaves(arguments), crossing).compile()
        self.programs |= self._weight_program.programs

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    def forward(self, params: Arrays, buffers: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays, Residuals | None]:
        """Dispatch: (outputs that are read by port, buffers after the call, residuals for `backward`)."""
        outputs, after, kept = self.programs["forward"](params, buffers, inputs)
        if not self.has_backward:
            return outputs, after, None
        return outputs, after, self.functions.residuals(params, buffers, inputs, kept)

    def backward(
        self, params: Arrays, residuals: Residuals, cotangents: Cotangents, gradients: Arrays
    ) -> tuple[Arrays, Arrays]:
        """Dispatch: (gradients with this microbatch added, gradient of each input port asked for).

        Consumes `gradients`: their memory is reused.
        """
        return self.programs["backward"](params, residuals, cotangents, gradients)

    def backward_input(
        self, params: Arrays, residuals: Residuals, cotangents: Cotangents
    ) -> tuple[Arrays, PendingWeights]:
        """Dispatch: (gradient of each input port asked for, what `backward_weight` needs)."""
        arguments = params, residuals, cotangents
        carried, crossing = self.programs["backward_input"](*arguments)
        leaves = jax.tree.leaves(arguments)
        return carried, PendingWeights(tuple(leaves[i] for i in self._weight_program.reads), crossing)

    def backward_weight(self, pending: PendingWeights, gradients: Arrays) -> Arrays:
        """Dispatch: gradients with this microbatch added. Consumes `gradients`: their memory is reused."""
        return self._weight_program(pending, gradients)
