"""What the loss and the metrics of a stage come to over a step: programs on its mesh, once a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from hetjax.compilation.compiled_program import Program
from hetjax.execution.made_programs import MadePrograms, key_of
from hetjax.programs.forward_backward import ForwardBackward
from hetjax.stages.flat_state import Arrays
from hetjax.stages.metric_ports import combined, is_metric
from hetjax.stages.stage import LOSS


class StageResults:
    """Adds up the losses and metrics of a stage's microbatches.

    Args:
        program: forward and backward of a stage that holds a loss.
        microbatches: those of the stage.
        loss_dtype: dtype of the weighted loss.
        names_loss: whether the stage's own mean loss is among the metrics, as where there are others.
        made: programs of steps for batches of other shapes.

    Attributes:
        stage: the stage.
        ports: the outputs of a forward that it takes.
        metrics: dtype of every metric by its name.
        programs: "results", and "scale" where the batch may leave the count of loss tokens to the devices; none in a
            process that does not run the stage.
    """

    def __init__(
        self,
        program: ForwardBackward,
        microbatches: int,
        loss_dtype: jnp.dtype,
        *,
        names_loss: bool,
        made: MadePrograms,
    ):
        self.stage = stage = program.stage
        self.ports = (LOSS, *(port for port in program.outputs if is_metric(port)))
        self._loss_dtype, self._names_loss = loss_dtype, names_loss
        loss = program.outputs[LOSS]
        self.scale_dtype = loss.dtype
        scalars = {port: program.outputs[port] for port in self.ports}
        scale = jax.ShapeDtypeStruct((), loss.dtype, sharding=stage.replicated)
        found = jax.eval_shape(self._results, (scalars,) * microbatches, scale)
        self.metrics = {name: aval.dtype for name, aval in found[1].items()}
        self.programs: dict[str, Program] = {}
        if not stage.is_local:
            return
        functions: dict[str, tuple[Callable, tuple]] = {"results": (self._results, ((scalars,) * microbatches, scale))}
        # Without them the batch brings the count of loss tokens.
        if "loss_weights" in program.inputs:
            functions["scale"] = self._scale, ((program.inputs["loss_weights"],) * microbatches,)
        for name, (function, arguments) in functions.items():
            shapes = {str(place): aval for place, aval in enumerate(jax.tree.leaves(arguments))}
            make = functools.partial(
                Program, f"{stage.name} {name}", function, stage.mesh, *arguments, out_shardings=stage.replicated
            )
            self.programs[name] = made.once(("results", stage.name, name, self.ports, key_of(shapes)), make)

    def _results(self, microbatches: Sequence[Arrays], scale: jax.Array) -> tuple[jax.Array, Arrays]:
        sums = {port: sum(_wide(each[port]) for each in microbatches) for port in self.ports}
        weighted = sums.pop(LOSS) * scale
        metrics = combined(sums)
        if self._names_loss:
            metrics[LOSS] = weighted / self.stage.loss_weight
        return weighted.astype(self._loss_dtype), metrics

    def _scale(self, loss_weights: Sequence[jax.Array]) -> jax.Array:
        count = sum(jnp.sum(weights.astype(self.scale_dtype)) for weights in loss_weights)
        return self.stage.loss_weight / jnp.where(count == 0, 1, count)

    def scale(self, loss_weights: tuple[jax.Array, ...]) -> jax.Array:
        """Dispatch: the loss's weight over the sum of all microbatches' loss weights; over 1 for a sum of 0."""
        return self.programs["scale"](loss_weights)

    def __call__(self, microbatches: Sequence[Arrays], scale: jax.Array) -> tuple[jax.Array, Arrays]:
        """Dispatch: (what the loss adds to that of the step, the metrics by name)."""
        return self.programs["results"](tuple(microbatches), scale)


def _wide(x: jax.Array) -> jax.Array:
    """Return a part of a sum in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x
