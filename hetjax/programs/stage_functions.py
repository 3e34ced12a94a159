"""The forward and the backward of one stage as pure functions, to be traced.

The forward returns, beside its outputs, the *residuals* that the backward needs. Residuals that are verbatim inputs
of the forward, weights above all, are not returned: the backward takes the very same arrays again. So weights are
held once, whatever the number of microbatches in flight, and whether or not they train.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from hetjax.errors import GraphError
from hetjax.models.remat import remat_in_force, whole
from hetjax.programs.data_shards import by_shard, merge, split
from hetjax.programs.residuals import ResidualPlaces, Residuals
from hetjax.programs.whole_weights import WholeWeights
from hetjax.stages.flat_state import Arrays, Shapes
from hetjax.stages.metric_ports import is_metric
from hetjax.stages.stage import LOSS, Stage

Cotangents = dict[str, tuple[jax.Array, ...]]
"""The gradients that arrive at each output port, one from each link that leaves it there; they are added up."""


class StageFunctions:
    """The functions of a stage called with inputs of these shapes.

    Args:
        stage: the stage.
        inputs: shapes of its inputs for one microbatch, by port.
        gradient_inputs: the input ports whose gradient is asked for.
        gradient_outputs: the number of gradients that arrive at each output port; empty for no backward.

    Attributes:
        outputs: shape, dtype and sharding by output port.

    Raises GraphError for an output port that does not exist or has no gradient.
    """

    def __init__(
        self,
        stage: Stage,
        inputs: Shapes,
        gradient_inputs: tuple[str, ...],
        gradient_outputs: Mapping[str, int],
    ):
        self.stage, self.inputs = stage, inputs
        self.gradient_inputs, self.gradient_outputs = gradient_inputs, dict(gradient_outputs)
        self._places = ResidualPlaces()
        self._taken_again: tuple[int, ...] = ()
        with remat_in_force(stage.remat) as setting:
            arguments = stage.compute_params, stage.buffers, inputs
            outputs, _ = jax.eval_shape(stage.call, *arguments)
            self._whole = WholeWeights(stage, stage.call, *arguments)
        # A model none of whose layers asks for the setting is wrapped as one layer.
        self._remat_whole = "none" if setting.layers else stage.remat
        self.outputs: Shapes = {
            port: jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=stage.port_sharding(port, aval.shape))
            for port, aval in outputs.items()
        }
        self._check_gradient_ports()

    @property
    def has_backward(self) -> bool:
        """Whether any gradient arrives."""
        return bool(self.gradient_outputs)

    @property
    def argument_count(self) -> int:
        """Number of the forward's arguments, flattened."""
        return len(jax.tree.leaves((self.stage.compute_params, self.stage.buffers, self.inputs)))

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

    # ── forward ──────────────────────────────────────────────────────────────────────────────────

    def forward(self, params: Arrays, buffers: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays, tuple[jax.Array, ...]]:
        """Return (outputs by port, buffers after the call, residuals that are no arguments)."""
        params = self._whole.gather(params)
        if not self.has_backward:
            return *self.stage.call(params, buffers, inputs), ()
        shards = self.stage.gradient_shards
        if shards == 1:
            return self._linearized(self.stage, params, buffers, inputs)
        forward = by_shard(
            lambda params, inputs: self._linearized(self.stage.of_one_shard, params, {}, inputs), shards, shared=(0,)
        )
        outputs, _, kept = forward(params, split(inputs, shards))
        # The loss and parts of metrics are sums over samples.
        summed = {port for port in outputs if port == LOSS or is_metric(port)}
        return {port: jnp.sum(x) if port in summed else merge(x) for port, x in outputs.items()}, {}, kept

    def _linearized(
        self, stage: Stage, params: Arrays, buffers: Arrays, inputs: Arrays
    ) -> tuple[Arrays, Arrays, tuple[jax.Array, ...]]:
        def call(trained: Arrays, carried: Arrays):
            outputs, after = stage.call({**params, **trained}, buffers, {**inputs, **carried})
            return {port: outputs[port] for port in self.gradient_outputs}, (outputs, after)

        trained = {path: params[path] for path in stage.trained}
        carried = {port: inputs[port] for port in self.gradient_inputs}
        with remat_in_force(stage.remat):
            _, vjp, (outputs, after) = jax.vjp(whole(call, self._remat_whole), trained, carried, has_aux=True)
        kept = self._places.keep(vjp, jax.tree.leaves((params, buffers, inputs)))
        self._taken_again = tuple(sorted(i for i in self._places.arguments if i >= len(params)))
        return outputs, after, kept

    def residuals(
        self, params: Arrays | Shapes, buffers: Arrays | Shapes, inputs: Arrays | Shapes, kept: tuple[jax.Array, ...]
    ) -> Residuals:
        """Return what the backward takes of a forward with these arguments; weights are no part of it.

        `kept` is what the forward, which was traced before, returned beside outputs and buffers.
        """
        arguments = jax.tree.leaves((params, buffers, inputs))
        return Residuals({str(i): arguments[i] for i in self._taken_again}, kept)

    # ── backward ─────────────────────────────────────────────────────────────────────────────────

    def gradients(self, params: Arrays, residuals: Residuals, cotangents: Cotangents) -> tuple[Arrays, Arrays]:
        """Return (gradients of the weights, of each shard where shards keep their own; of the inputs asked for)."""
        arguments, kept = residuals
        params = self._whole.gather(params)
        shards = self.stage.gradient_shards
        if shards == 1:
            return self._transposed(params, arguments, kept, cotangents, {})
        loss = {port: arriving for port, arriving in cotangents.items() if port == LOSS}
        others = {port: arriving for port, arriving in cotangents.items() if port != LOSS}
        backward = by_shard(self._transposed, shards, shared=(0, 4))
        trained, carried = backward(params, split(arguments, shards), kept, split(others, shards), loss)
        return trained, merge(carried)

    def _transposed(
        self,
        params: Arrays,
        again: dict[str, jax.Array],
        kept: tuple[jax.Array, ...],
        cotangents: Cotangents,
        of_loss: Cotangents,
    ) -> tuple[Arrays, Arrays]:
        arguments: list[jax.Array | None] = jax.tree.leaves(params)
        arguments += [again.get(str(i)) for i in range(len(arguments), self.argument_count)]
        vjp = self._places.restore(arguments, kept)
        return vjp(
            {
                port: sum(arriving[1:], start=arriving[0]).astype(self.outputs[port].dtype)
                for port, arriving in {**cotangents, **of_loss}.items()
            }
        )
