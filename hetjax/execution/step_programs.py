"""Everything compiled that one training step dispatches."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from hetjax.boundary import Transport
from hetjax.compilation.dispatch_order import in_order
from hetjax.errors import GraphError, ScheduleError
from hetjax.programs.end_of_step import EndOfStep
from hetjax.programs.forward_backward import ForwardBackward
from hetjax.programs.update import Update
from hetjax.schedule import Kind, Schedule
from hetjax.stages.host_transfer import ToEveryProcess
from hetjax.stages.links import Link
from hetjax.stages.stage import LOSS, Shapes, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossing:
    """Both ways over one link; no way back where no gradient returns."""

    link: Link
    forward: Transport
    backward: Transport | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The parts of a step, keyed by stage and link name.

    Attributes:
        stages, schedule, programs, crossings, updates, ends: what their types say.
        inputs: what each stage takes of one microbatch of the batch.
        norm_in, norm_out: carry a stage's sum of squares to the last stage, and the total back.
        scale: loss weights of the microbatches -> one over their sum, on the last stage's mesh.
        finish: (losses of the microbatches, scale) -> mean loss, on the last stage's mesh.
        tell: carry the metrics from there to every process.
        total, root: sums of squares -> their sum, and -> the norm, on the last stage's mesh.
    """

    stages: Mapping[str, Stage]
    schedule: Schedule
    inputs: Mapping[str, Shapes]
    programs: Mapping[str, ForwardBackward]
    crossings: Mapping[str, Crossing]
    updates: Mapping[str, Update]
    ends: Mapping[str, EndOfStep]
    norm_in: Mapping[str, Transport]
    norm_out: Mapping[str, Transport]
    scale: Callable[[tuple[jax.Array, ...]], jax.Array]
    finish: Callable[[tuple[jax.Array, ...], jax.Array], jax.Array]
    total: Callable[[tuple[jax.Array, ...]], jax.Array]
    root: Callable[[jax.Array], jax.Array]
    tell: Mapping[str, ToEveryProcess]

    @property
    def sink(self) -> Stage:
        """The stage that holds the loss."""
        return self.stages[self.schedule.graph.sink.name]


def trace_step(
    stages: Sequence[Stage],
    links: Sequence[Link],
    inputs: Mapping[str, Shapes],
    updates: Mapping[str, Update],
    schedule: Schedule,
    devices: Sequence[jax.Device],
) -> tuple[Step, dict[str, Callable[[], object]]]:
    """Trace all programs in the order of the data, and list what remains to compile, by name."""
    in_two_parts = {action.stage for action in schedule.actions if action.kind is Kind.BACKWARD_INPUT}
    for action in schedule.actions:
        if action.kind is Kind.BACKWARD and action.stage in in_two_parts:
            raise ScheduleError(
                f"schedule {schedule.name!r}: stage {action.stage!r} has backwards in two parts for some microbatches "
                "and whole ones for others; choose one for all"
            )
    programs: dict[str, ForwardBackward] = {}
    crossings: dict[str, Crossing] = {}
    for stage in stages:
        arriving = [link for link in links if link.destination == stage.name]
        taken = dict(inputs[stage.name])
        for link in arriving:
            crossing = _crossing(link, programs[link.source], stage)
            crossings[link.name] = crossing
            taken[link.destination_port] = jax.ShapeDtypeStruct(
                crossing.forward.shape, crossing.forward.dtype, sharding=crossing.forward.destination
            )
        programs[stage.name] = ForwardBackward(
            stage,
            taken,
            gradient_inputs=tuple(link.destination_port for link in arriving if link.gradient),
            gradient_outputs=_gradient_outputs(stage, links, schedule.graph.sink.name),
            in_two_parts=stage.name in in_two_parts,
        )
    sink = programs[schedule.graph.sink.name]
    _check_loss(sink)
    norm_dtype = jnp.result_type(*(update.norm_dtype for update in updates.values()))
    home = sink.stage.replicated
    norm_in = {name: Transport(update.stage.replicated, home, (), norm_dtype) for name, update in updates.items()}
    norm_out = {name: Transport(home, update.stage.replicated, (), norm_dtype) for name, update in updates.items()}

    def on_sink(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return in_order(jax.jit(function, out_shardings=home), home.mesh)

    step = Step(
        stages={stage.name: stage for stage in stages},
        schedule=schedule,
        inputs=inputs,
        programs=programs,
        crossings=crossings,
        updates=updates,
        ends={stage.name: EndOfStep(stage) for stage in stages if EndOfStep.applies(stage)},
        norm_in=norm_in,
        norm_out=norm_out,
        scale=on_sink(functools.partial(_scale, dtype=sink.outputs[LOSS].dtype)),
        finish=on_sink(lambda losses, scale: sum(losses) * scale),
        total=on_sink(sum),
        root=on_sink(jnp.sqrt),
        tell={
            "loss": ToEveryProcess(home, (), sink.outputs[LOSS].dtype, devices),
            "grad_norm": ToEveryProcess(home, (), norm_dtype, devices),
        },
    )
    return step, _tasks(step)


def _crossing(link: Link, giver: ForwardBackward, taker: Stage) -> Crossing:
    if link.source_port not in giver.outputs:
        raise GraphError(
            f"edge {link.name}: module '{giver.stage.module}' has no output '{link.source_port}'; "
            f"its outputs are {', '.join(giver.outputs)}"
        )
    given = giver.outputs[link.source_port]
    here, there = given.sharding, taker.port_sharding(link.destination_port, given.shape)
    return Crossing(
        link=link,
        forward=Transport(here, there, given.shape, given.dtype),
        backward=Transport(there, here, given.shape, given.dtype) if link.gradient else None,
    )


def _scale(loss_weights: tuple[jax.Array, ...], dtype: jnp.dtype) -> jax.Array:
    """One over the sum, or 1 for a batch without any."""
    count = sum(jnp.sum(weights.astype(dtype)) for weights in loss_weights)
    return 1 / jnp.where(count == 0, 1, count)


def _gradient_outputs(stage: Stage, links: Sequence[Link], sink: str) -> dict[str, int]:
    """How many gradients arrive at each output port; the loss of the last stage starts them all."""
    counts = Counter(link.source_port for link in links if link.source == stage.name and link.gradient)
    learns = stage.trains or any(link.gradient for link in links if link.destination == stage.name)
    return {LOSS: 1} if stage.name == sink and learns else dict(counts)


def _check_loss(sink: ForwardBackward) -> None:
    loss = sink.outputs.get(LOSS)
    if loss is None or loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
        told = {port: f"{aval.dtype}{list(aval.shape)}" for port, aval in sink.outputs.items()}
        raise GraphError(
            f"module '{sink.stage.module}' ends the graph, so it must return {{'loss': a floating scalar, the sum over "
            f"tokens}}, but it returns {told}"
        )


def _tasks(step: Step) -> dict[str, Callable[[], object]]:
    """What this process compiles, in the same order as any other that shares a program."""
    tasks: dict[str, Callable[[], object]] = {}
    for name, program in step.programs.items():
        if program.stage.is_local:
            tasks[f"{name} forward and backward"] = program.compile
    for name, update in step.updates.items():
        if update.stage.is_local:
            tasks[f"{name} update"] = update.compile
        if step.norm_in[name].is_local:
            tasks[f"{name} norm"] = _both(step.norm_in[name], step.norm_out[name])
    for name, end in step.ends.items():
        if end.stage.is_local:
            tasks[f"{name} end of step"] = end.compile
    for name, transport in step.tell.items():
        tasks[f"{name} to every process"] = transport.compile
    for name, crossing in step.crossings.items():
        if crossing.forward.is_local:
            tasks[f"{name} boundary"] = _both(crossing.forward, crossing.backward)
    return tasks


def _both(*transports: Transport | None) -> Callable[[], None]:
    def compile_both() -> None:
        for transport in transports:
            if transport is not None:
                transport.compile()

    return compile_both
