"""Traces all programs of one training step, and lists what to compile."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from hetjax.boundary import Transport, TwoWayTransport
from hetjax.compilation.compiled_program import Program
from hetjax.errors import GraphError, ScheduleError
from hetjax.execution.made_programs import MadePrograms, key_of
from hetjax.execution.stage_results import StageResults
from hetjax.programs.end_of_step import EndOfStep
from hetjax.programs.forward_backward import ForwardBackward
from hetjax.programs.update import Update
from hetjax.schedule import Kind, Schedule
from hetjax.stages.flat_state import Shapes
from hetjax.stages.host_transfer import ToEveryProcess
from hetjax.stages.link_transport import LinkTransport
from hetjax.stages.links import Link, learns
from hetjax.stages.metric_ports import is_metric
from hetjax.stages.routed_link import RoutedLink
from hetjax.stages.stage import LOSS, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The parts of a step, by name of a stage or a link.

    Attributes:
        stages: all stages, in the order of the data.
        links: the links between them.
        schedule: the actions of a step.
        inputs: shapes of each stage's inputs that come from the batch, for one of its microbatches.
        programs: forward and backward of each stage.
        boundaries: what carries the tensor of each link.
        updates: the optimizer programs of each stage that trains.
        ends: the `end_of_step` of each stage that has one.
        norms: carry the sum of squares of each stage that trains to the last stage, and the total back.
        results: of each stage that holds a loss, what adds up its losses and metrics.
        loss_ways: carry what a loss adds to that of the step to the last stage, from those of `results` elsewhere.
        reports: carry the metrics to every process: "loss" and "grad_norm" from the last stage, those of modules as
            "module/name" from their own.
        sink_programs: what runs on the last stage's mesh beside its forward and backward; none in a process without a
            device of it.
    """

    stages: Mapping[str, Stage]
    links: Mapping[str, Link]
    schedule: Schedule
    inputs: Mapping[str, Shapes]
    programs: Mapping[str, ForwardBackward]
    boundaries: Mapping[str, LinkTransport | RoutedLink]
    updates: Mapping[str, Update]
    ends: Mapping[str, EndOfStep]
    norms: Mapping[str, TwoWayTransport]
    results: Mapping[str, StageResults]
    loss_ways: Mapping[str, Transport]
    reports: Mapping[str, ToEveryProcess]
    sink_programs: Mapping[str, Program]

    @property
    def sink(self) -> Stage:
        """The last stage, where the losses and the squares of gradients meet."""
        return self.stages[self.schedule.graph.sink.name]

    def total_loss(self, losses: tuple[jax.Array, ...]) -> jax.Array:
        """Dispatch: the loss of the step, from what each module adds to it."""
        return losses[0] if len(losses) == 1 else self.sink_programs["total loss"](losses)

    def total(self, square_sums: tuple[jax.Array, ...]) -> jax.Array:
        """Dispatch: the sum of squares over all stages."""
        return self.sink_programs["total"](square_sums)

    def value(self, loss: jax.Array) -> jax.Array:
        """Dispatch: the loss for the optimizers that use it, in the dtype of the sum of squares."""
        return self.sink_programs["value"](loss)

    def root(self, square_sum: jax.Array) -> jax.Array:
        """Dispatch: the norm of the gradient."""
        return self.sink_programs["root"](square_sum)


def trace_step(
    stages: Sequence[Stage],
    links: Sequence[Link],
    inputs: Mapping[str, Shapes],
    updates: Mapping[str, Update],
    schedule: Schedule,
    devices: Sequence[jax.Device],
    routes: Mapping[str, tuple[int, ...]],
    made: MadePrograms,
) -> tuple[Step, dict[str, Callable[[], object]]]:
    """Trace all programs in the order of the data, and list what remains to compile, by name.

    Args:
        inputs: shapes of each stage's inputs that come from the batch, for one of its microbatches.
        updates: the optimizer programs of each stage that trains.
        devices: all devices of the trainer; every process that has one gets the metrics.
        routes: shape of the routes that a batch has for an output port, by "module.port".
        made: programs of steps for batches of other shapes, which this one shares where they are equal.

    Raises GraphError for a port that does not exist or a loss that is none, ScheduleError for backwards both whole and
    in two parts in one stage.
    """
    in_two_parts = {action.stage for action in schedule.actions if action.kind is Kind.BACKWARD_INPUT}
    for action in schedule.actions:
        if action.kind is Kind.BACKWARD and action.stage in in_two_parts:
            raise ScheduleError(
                f"schedule {schedule.name!r}: stage {action.stage!r} has backwards in two parts for some microbatches "
                "and whole ones for others; choose one for all"
            )
    by_name = {stage.name: stage for stage in stages}
    programs: dict[str, ForwardBackward] = {}
    boundaries: dict[str, LinkTransport | RoutedLink] = {}
    # Every input from the batch leads with the rows of its stage's window.
    rows = next(aval.shape[0] // by_name[name].window.size for name, own in inputs.items() for aval in own.values())
    for stage in stages:
        incoming = [link for link in links if link.destination == stage.name]
        taken = dict(inputs[stage.name])
        for link in incoming:
            source, outputs = by_name[link.source], programs[link.source].outputs
            port = f"{source.module}.{link.source_port}"
            make = functools.partial(LinkTransport, link, source, outputs, stage, rows)
            if port in routes:
                make = functools.partial(RoutedLink, link, source, outputs, stage, rows, routes[port])
            boundaries[link.name] = made.once((link.name, rows, key_of(outputs), routes.get(port)), make)
            taken[link.destination_port] = boundaries[link.name].arriving
        programs[stage.name] = made.once(
            (stage.name, stage.name in in_two_parts, key_of(taken)),
            functools.partial(
                ForwardBackward,
                stage,
                taken,
                gradient_inputs=tuple(link.destination_port for link in incoming if link.gradient),
                gradient_outputs=_gradient_outputs(stage, links),
                in_two_parts=stage.name in in_two_parts,
            ),
        )
        _check_results(programs[stage.name])
    sink = programs[schedule.graph.sink.name]
    norm_dtype = jnp.result_type(*(update.norm_dtype for update in updates.values()))
    losses = [stage for stage in stages if stage.loss_weight is not None]
    whole, loss_dtype = (
        sink.stage.replicated,
        jnp.result_type(*(programs[stage.name].outputs[LOSS].dtype for stage in losses)),
    )
    results = {
        stage.name: StageResults(
            programs[stage.name],
            schedule.count(stage.name),
            loss_dtype,
            names_loss=len(losses) > 1,
            made=made,
        )
        for stage in losses
    }
    reported = {"loss": (whole, loss_dtype), "grad_norm": (whole, norm_dtype)}
    for found in results.values():
        for name, dtype in found.metrics.items():
            reported[f"{found.stage.module}/{name}"] = found.stage.replicated, dtype
    step = Step(
        stages=by_name,
        links={link.name: link for link in links},
        schedule=schedule,
        inputs=inputs,
        programs=programs,
        boundaries=boundaries,
        updates=updates,
        ends={
            stage.name: made.once(("end", stage.name), functools.partial(EndOfStep, stage))
            for stage in stages
            if EndOfStep.applies(stage)
        },
        norms={
            name: made.once(
                ("norm", name), functools.partial(TwoWayTransport, update.stage.replicated, whole, (), norm_dtype)
            )
            for name, update in updates.items()
        },
        results=results,
        loss_ways={
            stage.name: made.once(
                ("loss", stage.name), functools.partial(Transport, stage.replicated, whole, (), loss_dtype)
            )
            for stage in losses
            if stage.name != sink.stage.name
        },
        reports={
            name: made.once(("report", name), functools.partial(ToEveryProcess, sharding, (), dtype, devices))
            for name, (sharding, dtype) in reported.items()
        },
        sink_programs=_sink_programs(sink, updates, norm_dtype, len(losses), loss_dtype, made),
    )
    return step, _tasks(step)


def _sink_programs(
    sink: ForwardBackward,
    updates: Mapping[str, Update],
    norm_dtype: jnp.dtype,
    losses: int,
    loss_dtype: jnp.dtype,
    made: MadePrograms,
) -> dict[str, Program]:
    stage = sink.stage
    if not stage.is_local:
        return {}
    loss = jax.ShapeDtypeStruct((), loss_dtype, sharding=stage.replicated)
    square_sum = jax.ShapeDtypeStruct((), norm_dtype, sharding=stage.replicated)
    programs: dict[str, tuple[Callable[..., jax.Array], tuple]] = {
        "total": (sum, ((square_sum,) * len(updates),)),
        "root": (jnp.sqrt, (square_sum,)),
    }
    if losses > 1:
        programs["total loss"] = sum, ((loss,) * losses,)
    if any(update.needs.loss for update in updates.values()):
        programs["value"] = (lambda loss: loss.astype(norm_dtype)), (loss,)
    return {
        name: made.once(
            ("sink", name),
            functools.partial(
                Program, f"{stage.name} {name}", function, stage.mesh, *arguments, out_shardings=stage.replicated
            ),
        )
        for name, (function, arguments) in programs.items()
    }


def _gradient_outputs(stage: Stage, links: Sequence[Link]) -> dict[str, int]:
    """Return how many gradients arrive at each output port, that of the loss among them."""
    counts = Counter(link.source_port for link in links if link.source == stage.name and link.gradient)
    if stage.loss_weight is not None and learns(stage, links):
        counts[LOSS] += 1
    return dict(counts)


def _check_results(program: ForwardBackward) -> None:
    """Raise GraphError for a loss that is none, and for metrics of a stage that holds no loss."""
    loss, module = program.outputs.get(LOSS), program.stage.module
    if program.stage.loss_weight is None:
        metrics = [port.partition(":")[0] for port in program.outputs if is_metric(port)]
        if metrics:
            raise GraphError(
                f"module '{module}' returns the metric '{metrics[0]}', but stage {program.stage.name} holds no loss; "
                "return metrics beside 'loss', or pass the numbers on to the module that does"
            )
    elif loss is None or loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
        found = {port: f"{aval.dtype}{list(aval.shape)}" for port, aval in program.outputs.items()}
        raise GraphError(
            f"module '{module}' ends the graph or is among its losses, so it must return {{'loss': a floating scalar, "
            f"the sum over tokens}}, but it returns {found}"
        )


def _tasks(step: Step) -> dict[str, Callable[[], object]]:
    """Return what this process compiles, in the same order as any other that shares a program."""
    tasks: dict[str, Callable[[], object]] = {}
    for name, program in step.programs.items():
        if program.stage.is_local:
            tasks[f"{name} forward and backward"] = program.compile
    for name, update in step.updates.items():
        if update.stage.is_local:
            tasks[f"{name} update"] = update.compile
        if step.norms[name].is_local:
            tasks[f"{name} norm"] = step.norms[name].compile
    for name, end in step.ends.items():
        if end.stage.is_local:
            tasks[f"{name} end of step"] = end.compile
    for name, results in step.results.items():
        for label, program in results.programs.items():
            tasks[f"{name} {label}"] = program.compile
    for name, way in step.loss_ways.items():
        if way.is_local:
            tasks[f"{name} loss"] = way.compile
    for name, report in step.reports.items():
        tasks[f"{name} to every process"] = report.compile
    for name, program in step.sink_programs.items():
        tasks[f"{step.sink.name} {name}"] = program.compile
    for name, boundary in step.boundaries.items():
        if boundary.is_local:
            tasks[f"{name} boundary"] = boundary.compile
    return tasks
