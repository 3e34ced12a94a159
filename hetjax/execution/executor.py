"""Walks a schedule and dispatches; never waits for a device.

With many processes each one walks the same schedule and dispatches what its own devices take part in, so
that all of them dispatch the programs they share in one order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax

from hetjax.execution.host_copies import copy_part
from hetjax.execution.in_flight import LinkInFlight, StageInFlight, StepInFlight
from hetjax.execution.step_programs import Step
from hetjax.schedule.actions import Action, Kind
from hetjax.stages.batch import StageMicrobatch
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import LOSS
from hetjax.state.train_state import StageState, TrainState

Outputs: TypeAlias = dict[str, jax.Array | tuple[jax.Array, ...]]
"""Outputs of a forward by port; one that a link cuts into microbatches as these."""

Dispatched: TypeAlias = jax.Array | Arrays | Outputs | tuple[Arrays, Arrays] | list[jax.Array] | None
"""The arrays that an action makes, which may still be under way; None where this process holds none of a transfer's.

FORWARD: outputs by port. BACKWARD: (gradient sums by path, gradients by input port). BACKWARD_INPUT: gradients by
input port. BACKWARD_WEIGHT: gradient sums by path. TRANSFER: the array on its destination, joined with the others of a
window where it is the last of them. OFFLOAD, RELOAD: the copies. UPDATE: weights by path.
"""

Observer: TypeAlias = Callable[[Action, Dispatched], None]
"""Called after each dispatch with the action and what it returned."""

Announcer: TypeAlias = Callable[[int, Action], None]
"""Called before each dispatch with the action and its place in the schedule."""


class PlacedAction(NamedTuple):
    """An action with its place in the one order of all processes."""

    place: int
    action: Action


class Executor:
    """Dispatches the actions of one compiled `Step`, in the order of its schedule.

    Attributes:
        step: the programs, the transports and the schedule.
    """

    def __init__(self, step: Step):
        self.step = step
        graph = step.schedule.graph
        self._links_from = {name: [step.links[edge.name] for edge in graph.outputs(name)] for name in step.stages}
        self._links_to = {name: [step.links[edge.name] for edge in graph.inputs(name)] for name in step.stages}
        actions = [PlacedAction(place, action) for place, action in enumerate(step.schedule.actions)]
        self._actions = [each for each in actions if self._takes_part(each.action)]
        self._updates = [each for each in actions if each.action.kind is Kind.UPDATE]

    def _takes_part(self, action: Action) -> bool:
        """Return whether this process has a device that the action runs on; updates are decided in `train`."""
        if action.kind is Kind.TRANSFER:
            return self.step.boundaries[action.edge].way(action.microbatch).is_local
        return action.kind is not Kind.UPDATE and self.step.stages[action.stage].is_local

    def gradients(
        self,
        state: TrainState,
        inputs: dict[StageMicrobatch, Arrays],
        loss_scales: dict[str, jax.Array],
        observe: Observer | None = None,
        announce: Announcer | None = None,
    ) -> tuple[StepInFlight, jax.Array | None]:
        """Dispatch all but the updates: (what is left, with gradients and buffers of every stage; loss). Keeps `state`.

        `inputs` holds each stage's part of each microbatch, and is emptied; `loss_scales` has, of each stage that this
        process runs and that holds a loss, its weight over its global token count, on the stage's mesh. A process that
        does not run the last stage gets None for the loss.
        """
        flight, loss, _ = self._run(self._begin(state, inputs, loss_scales, keeps_state=True), observe, announce)
        return flight, loss

    def _run(
        self, flight: StepInFlight, observe: Observer | None, announce: Announcer | None
    ) -> tuple[StepInFlight, jax.Array | None, dict[str, jax.Array]]:
        run: dict[Kind, Callable[[StepInFlight, Action], Dispatched]] = {
            Kind.FORWARD: self._forward,
            Kind.BACKWARD: self._backward,
            Kind.BACKWARD_INPUT: self._backward_input,
            Kind.BACKWARD_WEIGHT: self._backward_weight,
            Kind.TRANSFER: self._transfer,
            Kind.OFFLOAD: self._copy_part,
            Kind.RELOAD: self._copy_part,
        }
        for place, action in self._actions:
            if announce is not None:
                announce(place, action)
            dispatched = run[action.kind](flight, action)
            if observe is not None:
                observe(action, dispatched)
        return flight, *self._results(flight)

    def train(
        self,
        state: TrainState,
        inputs: dict[StageMicrobatch, Arrays],
        loss_scales: dict[str, jax.Array],
        observe: Observer | None = None,
        announce: Announcer | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Dispatch a whole step: (state after it, metrics still on the devices, in every process).

        Empties `inputs`, as `gradients` does.
        """
        flight, loss, found = self._run(self._begin(state, inputs, loss_scales), observe, announce)
        self._end_of_step(flight)
        square_sum = self._square_sum(flight)
        value = None if loss is None or "value" not in self.step.sink_programs else self.step.value(loss)
        stages = {
            name: StageState(params=stage.params, buffers=stage.buffers, opt_state=stage.opt_state)
            for name, stage in flight.stages.items()
        }
        for place, action in self._updates:
            if announce is not None:
                announce(place, action)
            # Every process takes part in carrying the sum to the stages that it has a device of.
            transport = self.step.norms[action.stage]
            arrived = transport.backward(square_sum) if transport.is_local else None
            carried = transport.is_local and self.step.updates[action.stage].needs.loss
            known_loss = transport.backward(value) if carried else None
            if action.stage in stages:
                updated = self._update(stages[action.stage], flight.stages[action.stage], action, arrived, known_loss)
                stages[action.stage] = updated
                if observe is not None:
                    observe(action, updated.params)
        norm = None if square_sum is None else self.step.root(square_sum)
        found |= {"loss": loss, "grad_norm": norm}
        metrics = {name: report(found.get(name)) for name, report in self.step.reports.items()}
        return dataclasses.replace(state, step=state.step + 1, stages=stages), metrics

    def _begin(
        self,
        state: TrainState,
        inputs: dict[StageMicrobatch, Arrays],
        loss_scales: dict[str, jax.Array],
        *,
        keeps_state: bool = False,
    ) -> StepInFlight:
        flight = StepInFlight(
            stages={name: self._begin_stage(name, stage, keeps_state) for name, stage in state.stages.items()},
            links={name: LinkInFlight() for name in self.step.links},
            loss_scales=loss_scales,
        )
        flight.take_inputs(inputs)
        return flight

    def _begin_stage(self, name: str, stage: StageState, keeps_state: bool) -> StageInFlight:
        compute, gradients = stage.params, {}
        if name in self.step.updates:
            compute, gradients = self.step.updates[name].prepare(stage.params)
        return StageInFlight(
            params=stage.params,
            opt_state=stage.opt_state,
            compute=compute,
            buffers=stage.buffers,
            gradients=gradients,
            keeps_state=keeps_state,
        )

    # ── actions on a microbatch ──────────────────────────────────────────────────────────────────

    def _forward(self, flight: StepInFlight, action: Action) -> Outputs:
        stage = flight.stages[action.stage]
        outputs, buffers, residuals = self.step.programs[action.stage].forward(
            stage.compute, stage.buffers, stage.inputs.pop(action.microbatch)
        )
        if self.step.stages[action.stage].trains:
            stage.buffers = buffers
        if residuals is not None:
            stage.residuals[action.microbatch] = residuals
        cut: dict[str, tuple[jax.Array, ...]] = {}
        for link in self._links_from[action.stage]:
            boundary = self.step.boundaries[link.name]
            handed_out = boundary.hand_out(outputs[link.source_port], action.microbatch)
            flight.links[link.name].activations.update(handed_out)
            if boundary.cut is not None:
                cut[link.source_port] = tuple(handed_out.values())
        if action.stage in self.step.results:
            results = self.step.results[action.stage]
            flight.results[action.stage].append({port: outputs[port] for port in results.ports})
            if LOSS in self.step.programs[action.stage].gradient_outputs:
                stage.add_cotangent(action.microbatch, LOSS, flight.loss_scales[action.stage])
        # Whoever keeps what is returned must not keep a window beside its pieces.
        return {**outputs, **cut}

    def _backward(self, flight: StepInFlight, action: Action) -> tuple[Arrays, Arrays]:
        stage = flight.stages[action.stage]
        gradients, input_gradients = self.step.programs[action.stage].backward(
            stage.compute,
            stage.residuals.pop(action.microbatch),
            stage.cotangents.pop(action.microbatch),
            self._sums(stage, action),
        )
        if gradients:
            self._accumulate(stage, action, gradients)
        self._send_back(flight, action, input_gradients)
        return stage.gradients, input_gradients

    def _backward_input(self, flight: StepInFlight, action: Action) -> Arrays:
        stage = flight.stages[action.stage]
        input_gradients, stage.pending[action.microbatch] = self.step.programs[action.stage].backward_input(
            stage.compute, stage.residuals.pop(action.microbatch), stage.cotangents.pop(action.microbatch)
        )
        self._send_back(flight, action, input_gradients)
        return input_gradients

    def _backward_weight(self, flight: StepInFlight, action: Action) -> Arrays:
        stage = flight.stages[action.stage]
        gradients = self.step.programs[action.stage].backward_weight(
            stage.pending.pop(action.microbatch), self._sums(stage, action)
        )
        self._accumulate(stage, action, gradients)
        return stage.gradients

    def _sums(self, stage: StageInFlight, action: Action) -> Arrays:
        """The gradients that a backward adds to; of zero, where they come late and it is the first."""
        if action.stage in self.step.updates and not stage.gradients:
            stage.gradients = self.step.updates[action.stage].zeros()
        return stage.gradients

    def _accumulate(self, stage: StageInFlight, action: Action, gradients: Arrays) -> None:
        """Keep a stage's gradients; after its last microbatch, those of the whole batch."""
        stage.backwards += 1
        if stage.backwards == self.step.schedule.count(action.stage):
            gradients, stage.square_sum = self.step.updates[action.stage].reduce(gradients)
        stage.gradients = gradients

    def _send_back(self, flight: StepInFlight, action: Action, input_gradients: Arrays) -> None:
        for link in self._links_to[action.stage]:
            if link.gradient:
                flight.links[link.name].gradients[action.microbatch] = input_gradients[link.destination_port]

    def _transfer(self, flight: StepInFlight, action: Action) -> jax.Array | None:
        boundary, link = self.step.boundaries[action.edge], self.step.links[action.edge]
        tensors, microbatch, way = flight.links[action.edge], action.microbatch, boundary.way(action.microbatch)
        # A process may hold a part of the destination alone, and then has nothing to send.
        if action.backward:
            moved = way.backward(tensors.gradients.pop(microbatch, None), *tensors.tables_of(microbatch, "backward"))
            if moved is not None:
                window, place = divmod(microbatch, boundary.ratio)
                gathered = boundary.gather(tensors.returned[window], place, moved)
                if gathered is not None:
                    del tensors.returned[window]
                    flight.stages[link.source].add_cotangent(window, link.source_port, gathered)
                    moved = gathered
        else:
            moved = way.forward(tensors.activations.pop(microbatch, None), *tensors.tables_of(microbatch, "forward"))
            if moved is not None:
                flight.stages[link.destination].inputs[microbatch][link.destination_port] = moved
        return moved

    def _copy_part(self, flight: StepInFlight, action: Action) -> list[jax.Array]:
        return copy_part(self.step.stages[action.stage], flight.stages[action.stage], action)

    # ── after the last microbatch ────────────────────────────────────────────────────────────────

    def _results(self, flight: StepInFlight) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        """(The loss on the last stage's mesh, None in a process without it; the metrics of the stages here)."""
        losses, metrics = [], {}
        for name, results in self.step.results.items():
            added = None
            if name in flight.stages:
                added, own = results(flight.results.pop(name), flight.loss_scales[name])
                metrics |= {f"{results.stage.module}/{metric}": value for metric, value in own.items()}
            if name in self.step.loss_ways:
                way = self.step.loss_ways[name]
                added = way(added) if way.is_local else None
            losses.append(added)
        return self.step.total_loss(tuple(losses)) if self.step.sink.is_local else None, metrics

    def _end_of_step(self, flight: StepInFlight) -> None:
        for name, program in self.step.ends.items():
            if name in flight.stages:
                stage = flight.stages[name]
                stage.buffers = program(stage.params, stage.buffers)

    def _square_sum(self, flight: StepInFlight) -> jax.Array | None:
        """The sum over all stages, on the last stage's mesh; None in a process without a device of it."""
        arrived = []
        for name in self.step.updates:
            if self.step.norms[name].is_local:
                stage = flight.stages.get(name)
                arrived.append(self.step.norms[name].forward(None if stage is None else stage.square_sum))
        return self.step.total(tuple(arrived)) if self.step.sink.is_local else None

    def _update(
        self,
        before: StageState,
        stage: StageInFlight,
        action: Action,
        square_sum: jax.Array | None,
        loss: jax.Array | None,
    ) -> StageState:
        gradients, stage.gradients = stage.gradients, {}
        params, opt_state = self.step.updates[action.stage].update(
            before.params, before.opt_state, gradients, square_sum, loss
        )
        return StageState(params=params, buffers=before.buffers, opt_state=opt_state)
