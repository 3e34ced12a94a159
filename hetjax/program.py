"""The programs of one stage: forward and backward, each one jitted function on the stage's mesh.

A forward program returns, beside its outputs, the *residuals* that its backward program will need.
Residuals that are verbatim inputs of the forward, weights above all, are not returned: the backward
program takes the very same arrays again. So weights are held once, whatever the number of
microbatches in flight, and whether or not they train.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hetjax.errors import GraphError
from hetjax.ordering import in_order
from hetjax.stage import Shapes, Stage
from hetjax.weights import Arrays
from models.remat import remat_in_force, whole


@dataclasses.dataclass
class _Residuals:
    """How the leaves of a VJP are found again: among the forward's own arguments, or among what it kept."""

    treedef: Any = None
    places: tuple[tuple[str, int], ...] = ()

    def keep(self, vjp: Any, arguments: list[jax.Array]) -> tuple[jax.Array, ...]:
        leaves, self.treedef = jax.tree.flatten(vjp)
        argument_of = {id(argument): i for i, argument in enumerate(arguments)}
        kept: list[jax.Array] = []
        kept_of: dict[int, int] = {}
        places = []
        for leaf in leaves:
            if id(leaf) in argument_of:
                places.append(("argument", argument_of[id(leaf)]))
                continue
            if id(leaf) not in kept_of:
                kept_of[id(leaf)] = len(kept)
                kept.append(leaf)
            places.append(("kept", kept_of[id(leaf)]))
        self.places = tuple(places)
        return tuple(kept)

    def restore(self, arguments: list[jax.Array], kept: tuple[jax.Array, ...]) -> Any:
        sources = {"argument": arguments, "kept": kept}
        return self.treedef.unflatten([sources[where][i] for where, i in self.places])

    @property
    def arguments(self) -> set[int]:
        return {i for where, i in self.places if where == "argument"}


class ForwardBackward:
    """The forward and backward programs of a stage, first traced, then compiled.

    Of a stage that other processes run only the shapes are known.

    `gradient_inputs` are the input ports whose gradient is asked for, `gradient_outputs` the number of
    gradients that arrive at each output port. A stage without gradient outputs has no backward program.
    """

    def __init__(
        self, stage: Stage, inputs: Shapes, *, gradient_inputs: tuple[str, ...], gradient_outputs: Mapping[str, int]
    ):
        self.stage = stage
        self.inputs = inputs
        self.gradient_inputs = gradient_inputs
        self.gradient_outputs = dict(gradient_outputs)
        self._residuals = _Residuals()
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
        def call(trained: Arrays, carried: Arrays):
            outputs, after = self.stage.call({**params, **trained}, buffers, {**inputs, **carried})
            return {port: outputs[port] for port in self.gradient_outputs}, (outputs, after)

        trained = params if self.stage.trains else {}
        carried = {port: inputs[port] for port in self.gradient_inputs}
        with remat_in_force(self.stage.remat):
            _, vjp, (outputs, after) = jax.vjp(whole(call, self._remat_whole), trained, carried, has_aux=True)
        return outputs, after, self._residuals.keep(vjp, jax.tree.leaves((params, buffers, inputs)))

    # ── backward ─────────────────────────────────────────────────────────────────────────────────

    def _backward(
        self,
        params: Arrays,
        again: dict[str, jax.Array],
        kept: tuple[jax.Array, ...],
        cotangents: dict[str, tuple[jax.Array, ...]],
        gradients: Arrays,
    ):
        """Adds to `gradients`; returns them and the gradient of every input port asked for."""
        arguments: list[Any] = jax.tree.leaves(params)
        arguments += [again.get(str(i)) for i in range(len(arguments), self._argument_count)]
        vjp = self._residuals.restore(arguments, kept)
        trained, carried = vjp(
            {
                port: sum(arriving[1:], start=arriving[0]).astype(self.outputs[port].dtype)
                for port, arriving in cotangents.items()
            }
        )
        return {path: gradients[path] + g.astype(gradients[path].dtype) for path, g in trained.items()}, carried

    @property
    def _argument_count(self) -> int:
        return len(jax.tree.leaves((self.stage.compute_params, self.stage.buffers, self.inputs)))

    # ── compilation ──────────────────────────────────────────────────────────────────────────────

    def compile(self) -> ForwardBackward:
        """Compile the forward program, then the backward program for the residuals as the forward lays them out."""
        forward = self._traced.lower().compile()
        self._forward = in_order(forward, self.stage.mesh)
        if self.has_backward:
            self._compile_backward(forward.output_shardings[2])
        return self

    def _compile_backward(self, shardings: tuple[NamedSharding, ...]) -> None:
        stage, avals = self.stage, self._traced.out_info[2]
        kept = tuple(
            jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
            for aval, sharding in zip(avals, shardings, strict=True)
        )
        self.residual_shapes = kept
        arguments = jax.tree.leaves((stage.compute_params, stage.buffers, self.inputs))
        params = len(stage.compute_params)
        self._again = sorted(i for i in self._residuals.arguments if i >= params)
        cotangents = {port: (self.outputs[port],) * count for port, count in self.gradient_outputs.items()}
        gradients = stage.params if stage.trains else {}
        program = (
            jax.jit(
                self._backward,
                donate_argnums=4,
                out_shardings=(
                    {path: aval.sharding for path, aval in gradients.items()},
                    {port: self.inputs[port].sharding for port in self.gradient_inputs},
                ),
            )
            .lower(stage.compute_params, {str(i): arguments[i] for i in self._again}, kept, cotangents, gradients)
            .compile()
        )
        self._backward_program = in_order(program, stage.mesh)

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
