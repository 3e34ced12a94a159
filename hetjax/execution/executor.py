"""Walks a schedule and dispatches; never waits for a device.

With many processes each one walks the same schedule and dispatches what its own devices take part in, so
that all of them dispatch the programs they share in one order.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax

from hetjax.execution.step_programs import Step
from hetjax.schedule.actions import Action, Kind
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import LOSS
from hetjax.state.train_state import StageState, TrainState

Observer = Callable[[Action, Any], None]
"""Called after each dispatch with the action and what it returned."""

Announcer = Callable[[int, Action], None]
"""Called before each dispatch with the action and its place in the schedule."""


@dataclasses.dataclass
class _InFlight:
    """What a step holds between its actions. Entries leave as soon as their last reader has been dispatched."""

    compute: dict[str, Arrays]
    buffers: dict[str, Arrays]
    gradients: dict[str, Arrays]
    arrived: dict[tuple[str, int], Arrays]
    leaving: dict[tuple[str, int], jax.Array] = dataclasses.field(default_factory=dict)
    returning: dict[tuple[str, int], jax.Array] = dataclasses.field(default_factory=dict)
    cotangents: dict[tuple[str, int], dict[str, tuple[jax.Array, ...]]] = dataclasses.field(
        default_factory=lambda: defaultdict(dict)
    )
    residuals: dict[tuple[str, int], Any] = dataclasses.field(default_factory=dict)
    pending: dict[tuple[str, int], Any] = dataclasses.field(default_factory=dict)
    backwards: Counter[str] = dataclasses.field(default_factory=Counter)
    square_sums: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    losses: list[jax.Array] = dataclasses.field(default_factory=list)


class Executor:
    """Runs steps of one compiled `Step`."""

    def __init__(self, step: Step):
        self.step = step
        graph = step.schedule.graph
        self._out = {name: [step.links[edge.name] for edge in graph.outputs(name)] for name in step.stages}
        self._in = {name: [step.links[edge.name] for edge in graph.inputs(name)] for name in step.stages}
        # With their places in the one order of all processes.
        actions = list(enumerate(step.schedule.actions))
        self._actions = [(place, action) for place, action in actions if self._takes_part(action)]
        self._updates = [(place, action) for place, action in actions if action.kind is Kind.UPDATE]

    def _takes_part(self, action: Action) -> bool:
        """Whether this process has a device of what the action runs on; an update is looked at in its turn."""
        if action.kind is Kind.TRANSFER:
            return self.step.boundaries[action.edge].is_local
        return action.kind is not Kind.UPDATE and self.step.stages[action.stage].is_local

    def gradients(
        self,
        state: TrainState,
        inputs: Mapping[tuple[str, int], Arrays],
        scale: jax.Array | None,
        observe: Observer | None = None,
        announce: Announcer | None = None,
    ) -> tuple[_InFlight, jax.Array | None]:
        """Dispatch all but the updates: (what is left, with gradients and buffers by stage; loss).

        `inputs` holds each stage's part of each microbatch, `scale` one over the global token count, on the last
        stage's mesh. A process that does not run the last stage gives and gets None for scale and loss.
        """
        flight = self._begin(state, inputs)
        run = {
            Kind.FORWARD: self._forward,
            Kind.BACKWARD: self._backward,
            Kind.BACKWARD_INPUT: self._backward_input,
            Kind.BACKWARD_WEIGHT: self._backward_weight,
            Kind.TRANSFER: self._transfer,
        }
        for place, action in self._actions:
            if announce is not None:
                announce(place, action)
            done = run[action.kind](flight, action, scale)
            if observe is not None:
                observe(action, done)
        loss = self.step.finish(tuple(flight.losses), scale) if self.step.sink.is_local else None
        return flight, loss

    def train(
        self,
        state: TrainState,
        inputs: Mapping[tuple[str, int], Arrays],
        scale: jax.Array | None,
        observe: Observer | None = None,
        announce: Announcer | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Dispatch a whole step: (state after it, metrics still on the devices, in every process)."""
        flight, loss = self.gradients(state, inputs, scale, observe, announce)
        for name, end in self.step.ends.items():
            if name in flight.buffers:
                flight.buffers[name] = end(state.stages[name].params, flight.buffers[name])
        square_sum = self._square_sum(flight)
        stages = {
            name: dataclasses.replace(stage, buffers=flight.buffers[name]) for name, stage in state.stages.items()
        }
        for place, action in self._updates:
            name = action.stage
            if announce is not None:
                announce(place, action)
            transport = self.step.norms[name]
            arrived = transport.backward(square_sum) if transport.is_local else None
            if name not in stages:
                continue
            stage = stages[name]
            params, opt_state = self.step.updates[name].update(
                stage.params, stage.opt_state, flight.gradients.pop(name), arrived
            )
            stages[name] = StageState(params=params, buffers=stage.buffers, opt_state=opt_state)
            if observe is not None:
                observe(action, params)
        norm = None if square_sum is None else self.step.root(square_sum)
        metrics = {"loss": self.step.reports["loss"](loss), "grad_norm": self.step.reports["grad_norm"](norm)}
        return TrainState(step=state.step + 1, stages=stages), metrics

    def _begin(self, state: TrainState, inputs: Mapping[tuple[str, int], Arrays]) -> _InFlight:
        compute, gradients = {}, {}
        for name, stage in state.stages.items():
            if name in self.step.updates:
                compute[name], gradients[name] = self.step.updates[name].prepare(stage.params)
            else:
                compute[name] = stage.params
        return _InFlight(
            compute=compute,
            gradients=gradients,
            buffers={name: stage.buffers for name, stage in state.stages.items()},
            arrived={key: dict(arrays) for key, arrays in inputs.items()},
        )

    def _forward(self, flight: _InFlight, action: Action, scale: jax.Array | None) -> Any:
        name, key = action.stage, (action.stage, action.microbatch)
        outputs, buffers, residuals = self.step.programs[name].forward(
            flight.compute[name], flight.buffers[name], flight.arrived.pop(key)
        )
        if self.step.stages[name].trains:
            flight.buffers[name] = buffers
        if residuals is not None:
            flight.residuals[key] = residuals
        for link in self._out[name]:
            flight.leaving[link.name, action.microbatch] = outputs[link.source_port]
        if name == self.step.schedule.graph.sink.name:
            flight.losses.append(outputs[LOSS])
            flight.cotangents[key][LOSS] = (scale,)
        return outputs

    def _backward(self, flight: _InFlight, action: Action, scale: jax.Array | None) -> Any:
        name, key = action.stage, (action.stage, action.microbatch)
        gradients, carried = self.step.programs[name].backward(
            flight.compute[name], flight.residuals.pop(key), flight.cotangents.pop(key), flight.gradients.get(name, {})
        )
        if gradients:
            self._accumulate(flight, name, gradients)
        self._return(flight, action, carried)
        return flight.gradients.get(name, {}), carried

    def _backward_input(self, flight: _InFlight, action: Action, scale: jax.Array | None) -> Any:
        name, key = action.stage, (action.stage, action.microbatch)
        carried, flight.pending[key] = self.step.programs[name].backward_input(
            flight.compute[name], flight.residuals.pop(key), flight.cotangents.pop(key)
        )
        self._return(flight, action, carried)
        return carried

    def _backward_weight(self, flight: _InFlight, action: Action, scale: jax.Array | None) -> Any:
        name, pending = action.stage, flight.pending.pop((action.stage, action.microbatch))
        gradients = self.step.programs[name].backward_weight(pending, flight.gradients[name])
        self._accumulate(flight, name, gradients)
        return flight.gradients[name]

    def _accumulate(self, flight: _InFlight, name: str, gradients: Arrays) -> None:
        """Keep a stage's gradients; after its last microbatch, those of the whole batch."""
        flight.backwards[name] += 1
        if flight.backwards[name] == self.step.schedule.microbatches:
            gradients, flight.square_sums[name] = self.step.updates[name].reduce(gradients)
        flight.gradients[name] = gradients

    def _return(self, flight: _InFlight, action: Action, carried: Arrays) -> None:
        for link in self._in[action.stage]:
            if link.gradient:
                flight.returning[link.name, action.microbatch] = carried[link.destination_port]

    def _transfer(self, flight: _InFlight, action: Action, scale: jax.Array | None) -> Any:
        boundary, link = self.step.boundaries[action.edge], self.step.links[action.edge]
        edge = action.edge, action.microbatch
        if action.backward:
            moved = boundary.backward(flight.returning.pop(edge, None))
            if moved is not None:
                arriving = flight.cotangents[link.source, action.microbatch]
                arriving[link.source_port] = (*arriving.get(link.source_port, ()), moved)
        else:
            moved = boundary.forward(flight.leaving.pop(edge, None))
            if moved is not None:
                flight.arrived[link.destination, action.microbatch][link.destination_port] = moved
        return moved

    def _square_sum(self, flight: _InFlight) -> jax.Array | None:
        """The sum over all stages, on the last stage's mesh; None where that is not."""
        arrived = []
        for name in self.step.updates:
            if self.step.norms[name].is_local:
                arrived.append(self.step.norms[name].forward(flight.square_sums.get(name)))
        return self.step.total(tuple(arrived)) if self.step.sink.is_local else None
