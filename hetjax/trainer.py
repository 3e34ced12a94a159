"""The trainer: a graph on a placement, with an optimizer and a schedule."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from hetjax.compilation.compile_all import compile_all
from hetjax.errors import ConfigError
from hetjax.execution.executor import Announcer, Executor, Observer
from hetjax.execution.flops import estimated_costs
from hetjax.execution.kernel_choice import Kernels, replaced_kernels
from hetjax.execution.made_programs import MadePrograms
from hetjax.execution.stage_results import StageResults
from hetjax.execution.step_programs import Step, trace_step
from hetjax.execution.steps_by_shape import StepsByShape
from hetjax.execution.traced_step import TracedStep
from hetjax.execution.trainer_options import (
    Microbatches,
    Optimizers,
    check_modules,
    check_offload,
    check_options,
    check_remat_settings,
    make_updates,
    module_counts,
)
from hetjax.graph import ModuleGraph
from hetjax.meshes import Placement, is_described
from hetjax.models.remat import Remat
from hetjax.schedule import DEFAULT_SCHEDULE, Costs, Report, Schedule, StageGraph, build_schedule, check, needs_costs
from hetjax.schedule.host_memory.offload import offload_lines, offload_modules
from hetjax.stages.batch import (
    Batch,
    StageMicrobatch,
    check_loss_tokens,
    input_shapes,
    loss_tokens,
    place_inputs,
)
from hetjax.stages.cut import cut_graph
from hetjax.stages.flat_state import Arrays
from hetjax.stages.host_transfer import to_devices, to_every_process
from hetjax.stages.links import make_links, stage_graph
from hetjax.stages.routed_link import LinkTraffic
from hetjax.stages.routes import place_routes, route_shapes
from hetjax.stages.stage import Stage
from hetjax.stages.windows import make_windows
from hetjax.state.initialize import initialize
from hetjax.state.module_arrays import merge_stages
from hetjax.state.train_state import StagedModules, TrainState, check_state
from hetjax.state.weight_source import WeightSource

_log = logging.getLogger(__name__)


class PlacedBatch(NamedTuple):
    """A batch on the devices: each local stage's inputs, and the weight of each loss over its tokens on its mesh."""

    inputs: dict[StageMicrobatch, Arrays]
    loss_scales: dict[str, jax.Array]


class Trainer:
    """Trains a module graph, every module on the mesh that the placement gives it.

    The loss is a sum over tokens divided by the global token count, so that no placement, schedule or
    number of microbatches changes the numbers.

    Args:
        graph: modules and edges.
        placement: a layout for every module.
        optimizer: an optax optimizer, for all modules or by module. It sees a module's weights that train as
            {path: array}, those of stacked layers one layer at a time, and the loss as `value`. One that joins weights
            (a norm in the chain) would depend on the placement and is refused: clip with `max_grad_norm`.
        schedule: the name of one of `hetjax.schedule.SCHEDULES`, of which `DEFAULT_SCHEDULE` is the default.
        schedule_costs: what actions cost, for schedules that choose their order by it ("bubble_fill"); by default
            estimated from the FLOPs of the programs, once `compile` has the shapes of a batch.
        microbatches: parts that a batch is split into, for all modules or by module: {"llm": 8, "vision": 2} has the
            encoder take four of the language model's microbatches at once. A module that is left out has as many as
            the one that it feeds.
        frozen: modules that do not train, or parts of them by path ("vision.layers"): they get no optimizer state, a
            backward program only where a gradient passes through them, and running statistics of whole modules stay.
        trained: the only modules, or parts of them ("vision.projector"), that train; None for all that is not frozen.
        learning_rate_scale: factor on a module's steps; 1 for the modules left out.
        max_grad_norm: clip the gradient to this norm, taken over all modules; None for no clipping.
        param_dtype: dtype of the weights that are trained.
        compute_dtype: dtype that weights are cast to, once a step, for the programs; None for no cast.
        remat: what the layers of a module keep for the backward: "none" computes nothing again (for the modules left
            out), "full" all but a layer's input, "dots" all but matrix products with weights, or a list of points, such
            as ["attention", "mlp"] of hetjax.models: all but those.
        offload: encoders that wait in the memory of the host while nothing needs them: the optimizer's state until the
            update, weights between forwards and backwards, residuals of each microbatch. Between steps all is on the
            devices.
        kernels: "auto" for the kernels that compute, on a small problem, what plain operations do on the devices;
            "portable" for plain operations alone.
        devices: devices that a placement counts; default `jax.devices()`. For those of `hetjax.target_devices`, which
            are not there, `trace` and `compile` work, and nothing that runs.

    Attributes:
        placement: the placement on as many devices as there are.
        stages, links: the modules cut into stages, and the tensors between them.
        schedule: the schedule that steps run by; one that chooses its order by costs is chosen anew by `compile`.
        report: the result of its check, with the most microbatches alive on each stage.
        updates: the update of each stage that trains, by stage name.
        offload: the modules of `offload`.
        traffic: what the links moved in the last step whose routes came with the batch, by the link's name.

    Over many processes (`jax.distributed`) every one makes the same trainer and calls the same methods in the
    same order. Each builds, compiles and holds only what its own devices run: a state has the stages of this process.

    Raises HetjaxError or PlacementError, before any program is compiled, for whatever does not fit.
    """

    def __init__(
        self,
        graph: ModuleGraph,
        placement: Placement,
        *,
        optimizer: Optimizers,
        schedule: str = DEFAULT_SCHEDULE,
        schedule_costs: Costs | None = None,
        microbatches: Microbatches = 1,
        frozen: Collection[str] = (),
        trained: Collection[str] | None = None,
        learning_rate_scale: Mapping[str, float] | None = None,
        max_grad_norm: float | None = None,
        param_dtype: DTypeLike = "float32",
        compute_dtype: DTypeLike | None = None,
        remat: Mapping[str, Remat | Sequence[str]] | None = None,
        offload: Collection[str] = (),
        kernels: Kernels = "auto",
        devices: Sequence[jax.Device] | None = None,
    ):
        self.devices = tuple(jax.devices() if devices is None else devices)
        check_options(
            max_grad_norm=max_grad_norm,
            param_dtype=param_dtype,
            compute_dtype=compute_dtype,
            devices=self.devices,
        )
        counts = module_counts(microbatches, graph)
        self.graph = graph
        self.placement = placement.resolve(len(self.devices))
        self.stages = cut_graph(
            graph,
            self.placement,
            devices=self.devices,
            frozen=frozen,
            trained=trained,
            param_dtype=param_dtype,
            compute_dtype=compute_dtype,
            remat=check_remat_settings(remat or {}, graph),
            replaced_kernels=replaced_kernels(kernels, self.devices),
            windows=make_windows(graph, counts, self.placement.placement),
        )
        self.links = make_links(graph, self.stages)
        self._modules = StagedModules(graph=graph, stages=self.stages, devices=self.devices)
        self.offload = check_offload(offload, graph, self.stages)
        self.schedule: Schedule = self._build_schedule(
            schedule, stage_graph(self.stages, self.links), counts[graph.sink], schedule_costs
        )
        self.report: Report = check(self.schedule)
        self._estimates_costs = needs_costs(schedule) and schedule_costs is None
        self.updates = make_updates(
            graph,
            self.stages,
            optimizer,
            learning_rate_scale=learning_rate_scale or {},
            max_grad_norm=max_grad_norm,
            late_gradients=self.offload,
        )
        self.traffic: Mapping[str, LinkTraffic] = {}
        self._steps: StepsByShape | None = None

    def _build_schedule(self, name: str, graph: StageGraph, microbatches: int, costs: Costs | None) -> Schedule:
        return offload_modules(build_schedule(name, graph, microbatches, costs), self.offload)

    @property
    def offload_lines(self) -> list[str]:
        """What leaves the devices of each stage of the modules in `offload`, and what stays, a line each."""
        return list(offload_lines(self.schedule, self.offload))

    @property
    def microbatches(self) -> int:
        """Parts that a batch is split into by the module that holds the loss; those of others divide it."""
        return self.schedule.microbatches

    @property
    def compiled(self) -> Step:
        """Every program of a step for batches of the first shapes given; after `compile` or the first `step`."""
        if self._steps is None:
            raise ConfigError("the trainer has not compiled yet; call compile(batch) or step(state, batch) first")
        return self._steps.first.step

    def init(self, seed: int = 0, *, warm_start: Mapping[str, WeightSource] | None = None) -> TrainState:
        """Return weights from the seed (or as given, for modules that came with weights) and fresh optimizer state.

        The weights depend on the seed and the module's name, not on the placement. Modules of `warm_start` take theirs
        from a checkpoint (`hetjax.checkpoint.warm_start.open_weights`) of any placement. Raises ConfigError where they
        do not fit.
        """
        self._check_runs()
        check_modules(warm_start or {}, self.graph, "warm_start")
        return self.known(initialize(self.graph, self.stages, self.updates, seed, warm_start))

    def known(self, state: TrainState) -> TrainState:
        """Return a state that knows the modules it is of (`hetjax.module_of`), from arrays of this trainer's stages."""
        return dataclasses.replace(state, modules=self._modules)

    def compile(
        self,
        batch: Batch,
        *others: Batch,
        progress: bool = False,
        also: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        """Compile all programs for batches of these shapes; a step may then have any of them.

        `batch` is {module: {input: array or jax.ShapeDtypeStruct}}, as for `step`, and the largest of all where there
        are `others`. Programs that are equal for several shapes are compiled once. `also` holds further
        compilations to run at the same time, by name, e.g. those of `Generator.trace`.

        Raises BatchError and GraphError.
        """
        first = self.trace(batch)
        steps = [first, *(self.trace(other, beside=first) for other in others)]
        tasks: dict[str, Callable[[], object]] = dict(first.tasks)
        for number, traced in enumerate(steps[1:], 2):
            known = set(tasks.values())
            tasks |= {f"{name} ({number})": run for name, run in traced.tasks.items() if run not in known}
        made = StepsByShape([batch, *others], [Executor(traced.step) for traced in steps])
        compile_all({**tasks, **(also or {})}, progress=progress)
        if first.schedule is not self.schedule:
            _log.info(
                "schedule '%s': order chosen by costs estimated from the FLOPs of the programs (%s before, %s now)",
                self.schedule.name, self.schedule.digest()[:16], first.schedule.digest()[:16],
            )  # fmt: skip
        self.schedule, self.report = first.schedule, first.report
        for line in self.offload_lines:
            _log.info("%s", line)
        self._steps = made

    def trace(self, batch: Batch, *, beside: TracedStep | None = None) -> TracedStep:
        """Trace all programs of a step for batches of these shapes; the trainer stays as it is.

        A schedule that chooses its order by costs (`hetjax.schedule.needs_costs`) is built anew from the FLOPs of the
        traced programs, unless `schedule_costs` were given: the traced step holds the schedule that it would run by.
        A step `beside` one for other shapes runs by the same schedule, and has equal programs in common with it.

        Raises BatchError and GraphError.
        """
        inputs = input_shapes(batch, self.stages, self.links, self.microbatches)
        check_loss_tokens(batch, self.graph.losses)
        made = MadePrograms() if beside is None else beside.made
        schedule = self.schedule if beside is None else beside.schedule
        routes = route_shapes(batch, self.links, self.stages)
        step, tasks = trace_step(self.stages, self.links, inputs, self.updates, schedule, self.devices, routes, made)
        if beside is not None or not self._estimates_costs:
            return TracedStep(step, self.report if beside is None else beside.report, tasks, made)
        schedule = self._build_schedule(
            self.schedule.name, self.schedule.graph, self.microbatches, estimated_costs(step)
        )
        return TracedStep(dataclasses.replace(step, schedule=schedule), check(schedule), tasks, made)

    def step(
        self,
        state: TrainState,
        batch: Batch,
        *,
        observe: Observer | None = None,
        announce: Announcer | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Dispatch one training step without waiting: (new state, {"loss", "grad_norm"} still on the devices).

        Consumes `state`. `batch` is {module: {input: array}} on the host, every array leading with the
        batch dim; `batch["loss_tokens"]`, or else the sum of the last module's `loss_weights`, is the
        count that the summed loss is divided by. Of several losses it is {module: number}, or else each is divided by
        the sum of its module's `loss_weights`. A metric that a module returns is there as "module/name", and so is the
        mean of each of several losses. `observe(action, result)` is called after each dispatch, and
        `announce(place, action)` before it, with the action's place in the schedule.

        `batch["routes"]` has the tokens of an encoder go to other rows than those of its own inputs
        (`hetjax.stages.routes`); `traffic` then says what that moved.

        With many processes a batch may hold, as `RowSubset`, the rows that this process needs (`rows_needed`).
        Every process gets the metrics.
        """
        check_state(state, self.stages)
        executor = self._ready(batch)
        return executor.train(state, *self._place(batch, executor.step), observe, announce)

    def loss_and_gradients(self, state: TrainState, batch: Batch) -> tuple[jax.Array, dict[str, dict[str, np.ndarray]]]:
        """Return the loss, and the gradients of all trained weights as host arrays by module and path; keeps `state`.

        With many processes all of them call it, and get all of it.
        """
        check_state(state, self.stages)
        executor = self._ready(batch)
        flight, loss = executor.gradients(state, *self._place(batch, executor.step))
        trained = [stage for stage in self.stages if stage.trains]
        return executor.step.reports["loss"](loss), self._on_host(trained, flight.gradients, trained=True)

    def weights(self, state: TrainState) -> dict[str, dict[str, np.ndarray]]:
        """Return every weight as host arrays by module and path, the stages of a module joined.

        With many processes all of them call it, and get all weights, which must fit on one device of each.
        """
        check_state(state, self.stages)
        return self._on_host(self.stages, {name: stage.params for name, stage in state.stages.items()})

    def _on_host(
        self, stages: Sequence[Stage], arrays: Mapping[str, Arrays], *, trained: bool = False
    ) -> dict[str, dict[str, np.ndarray]]:
        """Host copies of these stages' arrays, which are the same in all processes, from those of the local ones."""
        copies = to_every_process(stages, arrays, self.devices, kind="trained" if trained else "params")
        return merge_stages(self.graph, stages, copies)

    def _check_runs(self) -> None:
        """Raise ConfigError where the devices are only described."""
        if is_described(self.devices[0]):
            raise ConfigError(
                f"the trainer is for {len(self.devices)} x {self.devices[0].device_kind}, which are only described "
                "(hetjax.target_devices): it traces and compiles; give it devices that are there to make a state or a "
                "step"
            )

    def _ready(self, batch: Batch) -> Executor:
        if self._steps is None:
            self.compile(batch)
        return self._steps.of(batch)

    def _place(self, batch: Batch, step: Step) -> PlacedBatch:
        inputs = place_inputs(batch, step.inputs, self.stages, self.microbatches)
        tables, self.traffic = place_routes(batch, step.boundaries)
        inputs |= tables
        counts = loss_tokens(batch, self.graph.losses)
        scales = {
            name: self._loss_scale(results, counts[results.stage.module], inputs)
            for name, results in step.results.items()
            if results.stage.is_local
        }
        return PlacedBatch(inputs, scales)

    def _loss_scale(
        self, results: StageResults, count: float | None, inputs: Mapping[StageMicrobatch, Arrays]
    ) -> jax.Array:
        """The weight of a loss over its count; where that is None, over the sum of the weights on the devices."""
        stage = results.stage
        if count is not None:
            return to_devices(np.asarray(stage.loss_weight / count, results.scale_dtype), stage.replicated)
        microbatches = range(self.schedule.count(stage.name))
        return results.scale(tuple(inputs[StageMicrobatch(stage.name, i)]["loss_weights"] for i in microbatches))
