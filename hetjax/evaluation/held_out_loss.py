"""The loss of held-out samples, by forward programs that infer, on the meshes of training."""

# B batch

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from hetjax.boundary import TwoWayTransport
from hetjax.data import LossBatch
from hetjax.errors import ConfigError, DataError
from hetjax.generation.stage_programs import Encode
from hetjax.generation.stage_weights import WeightCasts, Weights
from hetjax.stages.batch import Batch, StageMicrobatch, input_shapes, place_inputs
from hetjax.stages.flat_state import Arrays
from hetjax.stages.host_transfer import ToEveryProcess
from hetjax.stages.link_transport import link_transport
from hetjax.stages.stage import LOSS
from hetjax.stages.windows import ONE_MICROBATCH
from hetjax.state.train_state import TrainState
from hetjax.trainer import Trainer


class LossResult(NamedTuple):
    """The loss of held-out samples.

    Attributes:
        loss: mean over the tokens that the loss counts, in nats a token.
        tokens: the sum of the weights of these tokens.
        left_out: samples that cannot be used, each as "file:line: reason".
    """

    loss: float
    tokens: float
    left_out: tuple[str, ...]


class HeldOutLoss:
    """Computes the loss of held-out samples with the weights of a trainer's state, which stays as it is.

    It is the loss of training: the sum over tokens that the last module returns, over the sum of their weights. But
    modules infer: state that does not train is used and left alone. Rows are as many at once as a microbatch has, or a
    few more where the batch degree of a module asks for them.

    Args:
        trainer: its graph, stages and compute dtype are used.
        rows_of: returns the shapes of a batch of so many rows, by module and input.
        microbatch: rows of a microbatch of the loss.

    Attributes:
        rows: rows of a batch.
    """

    def __init__(self, trainer: Trainer, rows_of: Callable[[int], Batch], microbatch: int):
        degree = math.lcm(*(stage.layout.batch_degree for stage in trainer.stages))
        self.rows = -(-microbatch // degree) * degree
        # Encoders whose windows hold several microbatches in training take here what the last module takes.
        self._stages = [dataclasses.replace(stage, window=ONE_MICROBATCH) for stage in trainer.stages]
        self._links = trainer.links
        self._casts = WeightCasts(self._stages, "evaluation")
        self._inputs = input_shapes(rows_of(self.rows), self._stages, self._links, 1)
        by_name = {stage.name: stage for stage in self._stages}
        self._forwards: dict[str, Encode] = {}
        self._boundaries: dict[str, TwoWayTransport] = {}
        for stage in self._stages:
            taken = dict(self._inputs[stage.name])
            for link in self._links:
                if link.destination == stage.name:
                    made = self._forwards[link.source].outputs
                    boundary = link_transport(link, by_name[link.source], made, stage, gradient=False)
                    self._boundaries[link.name] = boundary
                    taken[link.destination_port] = boundary.arriving
            self._forwards[stage.name] = Encode(stage, taken, what="evaluation")
        if len(trainer.graph.losses) > 1:
            raise ConfigError(
                f"the held-out loss is that of one module, but {', '.join(trainer.graph.losses)} have losses; set "
                "eval.loss to false"
            )
        self._sink = trainer.schedule.graph.sink.name
        loss = self._forwards[self._sink].outputs[LOSS]
        self._report = ToEveryProcess(loss.sharding, loss.shape, loss.dtype, trainer.devices)

    def tasks(self) -> dict[str, Callable[[], object]]:
        """Return what remains to compile, by name."""
        tasks = self._casts.tasks()
        for name, forward in self._forwards.items():
            tasks |= {f"{name} evaluation": program.compile for program in forward.programs.values()}
        for name, boundary in self._boundaries.items():
            if boundary.is_local:
                tasks[f"{name} evaluation boundary"] = boundary.compile
        return {**tasks, "held-out loss to every process": self._report.compile}

    def __call__(self, state: TrainState, batches: Iterable[LossBatch]) -> LossResult:
        """Return the loss over batches of `rows` rows. Raises DataError where no token of theirs counts."""
        weights = self._casts(state)
        left_out: list[str] = []
        losses: list[float] = []
        tokens = 0.0
        before: jax.Array | None = None
        for batch in batches:
            left_out += batch.left_out
            if batch.arrays is None:
                continue
            now = self._dispatch(weights, batch.arrays)
            tokens += float(np.asarray(batch.arrays[self._forwards[self._sink].stage.module]["loss_weights"]).sum())
            if before is not None:  # read with the next one under way, so that devices stay busy
                losses.append(float(before))
            before = now
        losses += [] if before is None else [float(before)]
        if not tokens:
            named = f" The first that is left out: {left_out[0]}" if left_out else ""
            raise DataError(
                f"no token of the held-out samples counts for a loss; give some with answers, or set eval.loss to "
                f"false.{named}"
            )
        return LossResult(loss=math.fsum(losses) / tokens, tokens=tokens, left_out=tuple(left_out))

    def _dispatch(self, weights: Weights, batch: Batch) -> jax.Array:
        """Return the summed loss of a batch, in every process, still under way."""
        arrived = place_inputs(batch, self._inputs, self._stages, 1)
        outputs: dict[str, Arrays] = {}
        for stage in self._stages:
            crossed = {}
            for link in self._links:
                boundary = self._boundaries[link.name]
                if link.destination == stage.name and boundary.is_local:
                    moved = boundary.forward(outputs.get(link.source, {}).get(link.source_port))
                    if moved is not None:
                        crossed[link.destination_port] = moved
            if stage.is_local:
                inputs = {**arrived.pop(StageMicrobatch(stage.name, 0)), **crossed}
                outputs[stage.name] = self._forwards[stage.name].forward(*weights[stage.name], inputs)
        return self._report(outputs.get(self._sink, {}).get(LOSS))
