"""The arrays that a training step holds between its actions, by stage, link and microbatch.

An entry is taken out by its only reader, so that its memory is free as soon as that reader has been dispatched.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import jax
import optax

from hetjax.programs.residuals import Residuals
from hetjax.programs.split_backward.weight_program import PendingWeights
from hetjax.programs.stage_functions import Cotangents
from hetjax.stages.batch import StageMicrobatch
from hetjax.stages.flat_state import Arrays


@dataclasses.dataclass
class StageInFlight:
    """The arrays that one stage of this process holds during a step; microbatches are its own.

    Attributes:
        params, opt_state: of the state that the step was given; None for the latter where nothing trains.
        compute: weights as the programs take them, all step long.
        buffers: state that does not train, as the last forward left it.
        gradients: sums over the microbatches done; empty where nothing trains, and where they come late until the first
            backward.
        square_sum: sum of squares of the whole batch's gradients, after the last backward.
        backwards: microbatches whose gradients are in the sums.
        inputs: by microbatch, from their arrival to FORWARD.
        residuals: by microbatch, from FORWARD to BACKWARD or BACKWARD_INPUT.
        cotangents: by microbatch, from their arrival to BACKWARD or BACKWARD_INPUT.
        pending: by microbatch, from BACKWARD_INPUT to BACKWARD_WEIGHT.
        keeps_state: whether the state is not consumed by the step.
    """

    params: Arrays
    opt_state: optax.OptState | None
    compute: Arrays
    buffers: Arrays
    gradients: Arrays
    square_sum: jax.Array | None = None
    backwards: int = 0
    inputs: dict[int, Arrays] = dataclasses.field(default_factory=dict)
    residuals: dict[int, Residuals] = dataclasses.field(default_factory=dict)
    cotangents: dict[int, Cotangents] = dataclasses.field(default_factory=lambda: defaultdict(dict))
    pending: dict[int, PendingWeights] = dataclasses.field(default_factory=dict)
    keeps_state: bool = False

    def add_cotangent(self, microbatch: int, port: str, cotangent: jax.Array) -> None:
        """Keep one more gradient of an output port for the backward, which adds them up."""
        arriving = self.cotangents[microbatch]
        arriving[port] = (*arriving.get(port, ()), cotangent)


@dataclasses.dataclass
class LinkInFlight:
    """The tensors of one link.

    Attributes:
        activations: to be sent on, by microbatch of the destination.
        gradients: to be sent back, likewise.
        returned: gradients that wait for others, by microbatch of the source and place in it.
        tables: what the transports of a routed link take beside the tensor, by microbatch of the destination and way.
    """

    activations: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
    gradients: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
    returned: dict[int, dict[int, jax.Array]] = dataclasses.field(default_factory=lambda: defaultdict(dict))
    tables: dict[int, dict[str, tuple[jax.Array, ...]]] = dataclasses.field(default_factory=dict)

    def tables_of(self, microbatch: int, way: str) -> tuple[tuple[jax.Array, ...], ...]:
        """Take out what a routed link needs for this move; nothing for other links."""
        found = self.tables.get(microbatch, {}).pop(way, None)
        return () if found is None else (found,)


@dataclasses.dataclass
class StepInFlight:
    """The arrays that a step of this process holds: of its own stages and all links by name.

    Attributes:
        stages, links: by name.
        loss_scales: of each stage here that holds a loss, its weight over its global token count.
        results: of each such stage the loss and the parts of metrics of every microbatch.
    """

    stages: dict[str, StageInFlight]
    links: dict[str, LinkInFlight]
    loss_scales: dict[str, jax.Array]
    results: dict[str, list[Arrays]] = dataclasses.field(default_factory=lambda: defaultdict(list))

    @property
    def gradients(self) -> dict[str, Arrays]:
        """The gradients of each stage that trains."""
        return {name: stage.gradients for name, stage in self.stages.items() if stage.gradients}

    def take_inputs(self, inputs: dict[StageMicrobatch, Arrays]) -> None:
        """Keep the parts of the batch for the forwards, and empty `inputs`: else its owner would hold them all step.

        By the name of a routed link they are its tables.
        """
        while inputs:
            (name, microbatch), arrays = inputs.popitem()
            kept = self.links[name].tables if name in self.links else self.stages[name].inputs
            kept[microbatch] = dict(arrays)
