"""Bubble fill: encoders run where the pipeline of a language model on the same devices would idle."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Kind, Schedule, needs, sends, update
from hetjax.schedule.builder import schedule_builder
from hetjax.schedule.colocated import colocated
from hetjax.schedule.filling import Filling, Order
from hetjax.schedule.gpipe import backwards, forwards
from hetjax.schedule.graph import StageGraph
from hetjax.schedule.greedy import greedy
from hetjax.schedule.interleaved import interleaved_1f1b
from hetjax.schedule.one_f_one_b import one_f_one_b
from hetjax.schedule.simulate import Costs, simulate

_PATIENCE = (0.0, 0.5, 1.0)  # of its own length, by which an encoder's program may delay the pipeline's


@schedule_builder("bubble_fill", summary="the language model's 1F1B, encoders in its idle time", needs_costs=True)
def bubble_fill(graph: StageGraph, microbatches: int, costs: Costs) -> tuple[Action, ...]:
    """Run the language model's 1F1B pipeline, and the programs of encoders in the idle time of its devices.

    The language model is the module that holds the loss; every other module counts as an encoder. It keeps
    the order of its 1F1B pipeline (the interleaved one, if its meshes hold several stages); encoders come
    anywhere between, forwards ahead of their readers and backwards behind them, where by simulation they cost the
    least by `costs`. An encoder of independent devices gains the most, as each device runs its piece when it
    is idle; one whose devices run together has to find them all idle. An encoder (lower case) on the devices of
    both stages of a language model, three microbatches, programs of equal length:

        device 0  f0 F0 f1 f2 F1 B0 b0 F2 B1 b1 B2 b2
        device 1  f0 f1 f2 F0 B0 F1 B1 b0 F2 B2 b1 b2

    The order is found by search: list scheduling with several bounds on how far forwards run ahead, improved by
    moving single programs. It depends on nothing but the arguments, and by `costs` never takes longer than
    1F1B, interleaved 1F1B or the colocated schedule: where they are better, it is one of them. Without encoders it
    is 1F1B. Peak of live microbatches: up to all of them on an encoder, as 1F1B on the language model.

    The idea is that of Feng et al., arXiv:2408.03505 (Optimus).

    Raises:
        ScheduleError: fewer than one microbatch, a graph or costs that do not fit, or a language model that
            the interleaved schedule refuses.
    """
    known = [interleaved_1f1b(graph, microbatches), one_f_one_b(graph, microbatches)]
    with contextlib.suppress(ScheduleError):  # an encoder that reads from the language model
        known.append(colocated(graph, microbatches))
    candidates = [schedule.actions for schedule in known]
    encoders = _encoder_streams(graph, microbatches)
    if encoders:
        pipeline = _pipeline_streams(known[0])
        filling = Filling(graph=graph, microbatches=microbatches, costs=costs, pipeline=pipeline, encoders=encoders)
        orders = [order for actions in candidates if (order := filling.order_of(actions)) is not None]
        bounds = sorted({min(1 << power, microbatches) for power in range(microbatches.bit_length() + 1)})
        orders += [greedy(filling, ahead=ahead, patience=patience) for ahead in bounds for patience in _PATIENCE]
        best = filling.improve(min(orders, key=filling.judge))
        candidates.insert(0, _with_transfers(filling, best))
    return min(candidates, key=lambda actions: _makespan(graph, microbatches, actions, costs))


def _makespan(graph: StageGraph, microbatches: int, actions: tuple[Action, ...], costs: Costs) -> float:
    candidate = Schedule(name=bubble_fill.name, graph=graph, microbatches=microbatches, actions=actions)
    return simulate(candidate, costs).makespan


def _pipeline_streams(plain: Schedule) -> list[list[Action]]:
    """The programs of the language model by mesh, in the order that they have in its pipeline."""
    graph, module = plain.graph, plain.graph.sink.module
    streams: dict[tuple[Hashable, ...], list[Action]] = {}
    for action in plain.actions:
        if action.kind in (Kind.FORWARD, Kind.BACKWARD) and graph.stage(action.stage).module == module:
            streams.setdefault(graph.occupies(action.stage), []).append(action)
    return list(streams.values())


def _encoder_streams(graph: StageGraph, microbatches: int) -> list[tuple[Action, ...]]:
    """The forwards of each encoder stage, and its backwards."""
    others = [stage for stage in graph.stages if stage.module != graph.sink.module]
    streams = [make(stage, microbatches) for stage in others for make in (forwards, backwards)]
    return [stream for stream in streams if stream]


def _with_transfers(filling: Filling, order: Order) -> tuple[Action, ...]:
    """The order with every transfer before the first program that starts when its tensor is made, and updates last."""
    actions: list[Action] = []
    pending: list[tuple[float, Action]] = []
    ended: dict[Action, float] = {}
    for action, start, end in filling.timed(order):
        actions += [sent for ready, sent in pending if ready <= start]
        pending = [(ready, sent) for ready, sent in pending if ready > start]
        actions.append(action)
        ended[action] = end
        for sent in sends(filling.graph, action, ended):
            # What a reader's forward lets out was made before it.
            (maker,) = needs(filling.graph, filling.microbatches, sent)
            pending.append((end if maker.stage == action.stage else max(start, ended[maker]), sent))
    updates = [update(stage.name) for stage in filling.graph.stages if stage.update]
    return (*actions, *(sent for _, sent in pending), *updates)
