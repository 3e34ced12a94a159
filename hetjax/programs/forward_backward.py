"""The programs of one stage: forward and backward, each one jitted function on the stage's mesh.

A forward program returns, beside its outputs, the *residuals* that its backward program will need.
Residuals that are verbatim inputs of the forward, weights above all, are not returned: the backward
program takes the very same arrays again. So weights are held once, whatever the number of
microbatches in flight, and whether or not they train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hetjax.compilation.dispatch_order import in_order
from hetjax.errors import GraphError
from hetjax.models.remat import remat_in_force, whole
from hetjax.programs.data_shards import by_shard, merge, split
from hetjax.programs.residuals import Residuals
from hetjax.programs.split_backward.halves import split_backward
from hetjax.programs.split_backward.weight_program import WeightProgram
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import LOSS, Shapes, Stage


class ForwardBackward:
    """The forward and backward programs of a stage, first traced, then compiled.

    Of a stage that other processes run only the shapes are known.

    `gradient_inputs` are the input ports whose gradient is asked for, `gradient_outputs` the number of
    gradients that arrive at each output port. A stage without gradient outputs has no backward program. With
    `in_two_parts` the backward is two programs: `backward_input` and `backward_weight`.
    """

    def __init__(
        self,
        stage: Stage,
        inputs: Shapes,
        *,
        gradient_inputs: tuple[str, ...],
        gradient_outputs: Mapping[str, int],
        in_two_parts: bool = False,
    ):
        self.stage = stage
        self.inputs = inputs
        self.gradient_inputs = gradient_inputs
        self.gradient_outputs = dict(gradient_outputs)
        self.in_two_parts = in_two_parts
        self._residuals = Residuals()
        self._trace_forward()

    @property
    def has_backward(self) -> bool:
        return bool(self.gradient_outputs)

    # ── forward ──────────────────────────────────────────────────────────────────────────────────

    def _trace_forward(self) -> None:
        stage = self.stage
        with remat_in_force(stage.remat) as setting:
            outputs, _ = jax.eval_shape(stage.call, stage.compute_params, stage.buffers, self.inputs)
        # A model none of whose layers asks for the setting is wrapped as one layer.
        self._remat_whole = "none" if setting.layers else stage.remat
        shardings = {port: stage.port_sharding(port, aval.shape) for port, aval in outputs.items()}
        self.outputs: Shapes = {
            port: jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=shardings[port])
            for port, aval in outputs.items()
        }
        buffers = {path: aval.sharding for path, aval in stage.buffers.items()}
        forward = self._forward_with_residuals if self.has_backward else self._forward_alone
        self._check_gradient_ports()
        if not stage.is_local:
            return
        self._traced = jax.jit(forward, out_shardings=(shardings, buffers, None)).trace(
            stage.compute_params, stage.buffers, self.inputs
        )

    def _check_gradient_ports(self) -> None:
        for port in self.gradient_outputs:
            if port not in self.outputs:
                raise GraphError(
                    f"module '{self.stage.module}' has no output '{port}'; its outputs are {', '.join(self.outputs)}"
                )
            if not jnp.issubdtype(self.outputs[port].dtype, jnp.floating):
                raise GraphError(
                    f"module '{self.stage.module}': output '{port}' is {self.outputs[port].dtype}, which has no "
                    "gradient; give its edge gradient=False"
                )

    def _forward_alone(self, params: Arrays, buffers: Arrays, inputs: Arrays):
        outputs, buffers = self.stage.call(params, buffers, inputs)
        return outputs, buffers, ()

    def _forward_with_residuals(self, params: Arrays, buffers: Arrays, inputs: Arrays):
        shards = self.stage.gradient_shards
        if shards == 1:
            return self._linearized(self.stage, params, buffers, inputs)
        forward = by_shard(
            lambda params, inputs: self._linearized(self.stage.of_one_shard, params, {}, inputs), shards, shared=(0,)
        )
        outputs, _, kept = forward(params, split(inputs, shards))
        # The loss is a sum over samples.
        return {port: jnp.sum(x) if port == LOSS else merge(x) for port, x in outputs.items()}, {}, kept

    def _linearized(self, stage: Stage, params: Arrays, buffers: Arrays, inputs: Arrays):
        """(outputs, buffers, residuals) of a stage called with these."""

        def call(trained: Arrays, carried: Arrays):
            outputs, after = stage.call({**params, **trained}, buffers, {**inputs, **carried})
            return {port: outputs[port] for port in self.gradient_outputs}, (outputs, after)

        trained = {path: params[path] for path in stage.trained}
        carried = {port: inputs[port] for port in self.gradient_inputs}
        with remat_in_force(stage.remat):
            _, vjp, (outputs, after) = jax.vjp(whole(call, self._remat_whole), trained, carried, has_aux=True)
        return outputs, after, self._residuals.keep(vjp, jax.tree.leaves((params, buffers, inputs)))

    # ── backward ─────────────────────────────────────────────────────────────────────────────────

    def _gradients(
        self,
        params: Arrays,
        again: dict[str, jax.Array],
        kept: tuple[jax.Array, ...],
        cotangents: dict[str, tuple[jax.Array, ...]],
    ) -> tuple[Arrays, Arrays]:
        """(gradients of the weights, of each shard where shards keep their own; of the inputs asked for)."""
        shards = self.stage.gradient_shards
        if shards == 1:
            return self._transposed(params, again, kept, cotangents, {})
        loss = {port: arriving for port, arriving in cotangents.items() if port == LOSS}
        others = {port: arriving for port, arriving in cotangents.items() if port != LOSS}
        backward = by_shard(self._transposed, shards, shared=(0, 4))
        trained, carried = backward(params, split(again, shards), kept, split(others, shards), loss)
        return trained, merge(carried)

    def _transposed(self, params: Arrays, again, kept, cotangents, of_loss) -> tuple[Arrays, Arrays]:
        arguments: list[Any] = jax.tree.leaves(params)
        arguments += [again.get(str(i)) for i in range(len(arguments), self._argument_count)]
        vjp = self._residuals.restore(arguments, kept)
        return vjp(
            {
                port: sum(arriving[1:], start=arriving[0]).astype(self.outputs[port].dtype)
                for port, arriving in {**cotangents, **of_loss}.items()
            }
        )

    def _backward(self, params: Arrays, again, kept, cotangents, gradients: Arrays) -> tuple[Arrays, Arrays]:
        """Adds to `gradients`; returns them and the gradient of every input port asked for."""
        trained, carried = self._gradients(params, again, kept, cotangents)
        return _added(gradients, trained), carried

    @property
    def _argument_count(self) -> int:
        return len(jax.tree.leaves((self.stage.compute_params, self.stage.buffers, self.inputs)))

    # ── compilation ──────────────────────────────────────────────────────────────────────────────

    def compile(self) -> ForwardBackward:
        """Compile the forward program, then the backward program for the residuals as the forward lays them out."""
        forward = self._traced.lower().compile()
        self._forward = in_order(forward, self.stage.mesh)
        if self.has_backward:
            arguments = self._backward_arguments(forward.output_shardings[2])
            (self._compile_split if self.in_two_parts else self._compile_backward)(*arguments)
        return self

    def _backward_arguments(self, shardings: tuple[NamedSharding, ...]) -> tuple[Any, ...]:
        """Shapes of (params, inputs taken again, residuals, cotangents)."""
        stage = self.stage
        self.residual_shapes = _placed(self._traced.out_info[2], shardings)
        arguments = jax.tree.leaves((stage.compute_params, stage.buffers, self.inputs))
        self._again = sorted(i for i in self._residuals.arguments if i >= len(stage.compute_params))
        again = {str(i): arguments[i] for i in self._again}
        cotangents = {port: (self.outputs[port],) * count for port, count in self.gradient_outputs.items()}
        return stage.compute_params, again, self.residual_shapes, cotangents

    @property
    def _carried_shardings(self) -> dict[str, NamedSharding]:
        return {port: self.inputs[port].sharding for port in self.gradient_inputs}

    def _compile_backward(self, *arguments: Any) -> None:
        gradients = self.stage.gradients
        shardings = {path: aval.sharding for path, aval in gradients.items()}
        backward = jax.jit(self._backward, donate_argnums=4, out_shardings=(shardings, self._carried_shardings))
        self._backward_program = in_order(backward.lower(*arguments, gradients).compile(), self.stage.mesh)

    def _compile_split(self, *arguments: Any) -> None:
        parts = split_backward(self._gradients, *arguments)
        first = jax.jit(parts.first, out_shardings=(self._carried_shardings, None)).lower(*arguments).compile()
        _, crossing = jax.eval_shape(parts.first, *arguments)
        self._input_program = in_order(first, self.stage.mesh)
        self.crossing_shapes = _placed(crossing, first.output_shardings[1])
        self._weight_program = WeightProgram(parts, self.stage, jax.tree.leaves(arguments), self.crossing_shapes)

    @property
    def programs(self) -> tuple[Any, ...]:
        """What was compiled: the forward, and the backward or its two parts."""
        if not self.has_backward:
            return (self._forward,)
        if not self.in_two_parts:
            return self._forward, self._backward_program
        return self._forward, self._input_program, *self._weight_program.compiled

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    def forward(self, params: Arrays, buffers: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays, Any]:
        """Dispatch: (outputs by port, buffers after the call, residuals for `backward`)."""
        outputs, after, kept = self._forward(params, buffers, inputs)
        if not self.has_backward:
            return outputs, after, None
        arguments = jax.tree.leaves((params, buffers, inputs))
        return outputs, after, ({str(i): arguments[i] for i in self._again}, kept)

    def backward(
        self, params: Arrays, residuals: Any, cotangents: dict[str, tuple[jax.Array, ...]], gradients: Arrays
    ) -> tuple[Arrays, Arrays]:
        """Dispatch: (gradients with this microbatch added, gradient of each input port asked for).

        Consumes `gradients`: their memory is reused.
        """
        again, kept = residuals
        return self._backward_program(params, again, kept, cotangents, gradients)

    def backward_input(
        self, params: Arrays, residuals: Any, cotangents: dict[str, tuple[jax.Array, ...]]
    ) -> tuple[Arrays, Any]:
        """Dispatch: (gradient of each input port asked for, what `backward_weight` needs)."""
        again, kept = residuals
        arguments = params, again, kept, cotangents
        carried, crossing = self._input_program(*arguments)
        leaves = jax.tree.leaves(arguments)
        return carried, (tuple(leaves[i] for i in self._weight_program.reads), crossing)

    def backward_weight(self, pending: Any, gradients: Arrays) -> Arrays:
        """Dispatch: gradients with this microbatch added. Consumes `gradients`: their memory is reused."""
        return self._weight_program(pending, gradients)


def _added(gradients: Arrays, new: Arrays) -> Arrays:
    return {path: gradients[path] + gradient.astype(gradients[path].dtype) for path, gradient in new.items()}


def _placed(avals: Any, shardings: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of a program's outputs where the program leaves them."""
    return tuple(
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
        for aval, sharding in zip(avals, shardings, strict=True)
    )
