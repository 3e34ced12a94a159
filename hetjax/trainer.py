"""The trainer: a graph on a placement, with an optimizer and a schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from hetjax.compilation.compile_all import compile_all
from hetjax.errors import ConfigError, StateError
from hetjax.execution.executor import Announcer, Executor, Observer
from hetjax.execution.flops import estimated_costs
from hetjax.execution.step_programs import Step, trace_step
from hetjax.graph import ModuleGraph
from hetjax.meshes import Placement
from hetjax.models import ModelError
from hetjax.models.remat import Remat, check_remat
from hetjax.programs.update import Update
from hetjax.schedule import Costs, Schedule, build_schedule
from hetjax.schedule.check import check
from hetjax.stages.batch import Batch, check_loss_tokens, input_shapes, loss_tokens, place_inputs
from hetjax.stages.cut import cut_graph
from hetjax.stages.flat_state import Arrays
from hetjax.stages.host_transfer import to_devices, to_every_process
from hetjax.stages.links import make_links, stage_graph
from hetjax.stages.stage import Stage
from hetjax.state.initialize import initialize
from hetjax.state.module_arrays import merge_stages
from hetjax.state.train_state import TrainState
from hetjax.state.weight_source import WeightSource


class Trainer:
    """Trains a module graph, every module on the mesh that the placement gives it.

    The loss is a sum over tokens divided by the global token count, so that no placement, schedule or
    number of microbatches changes the numbers.

    Args:
        graph: modules and edges.
        placement: a layout for every module.
        optimizer: an optax optimizer, for all modules or by module. It runs on each stage by itself, so what it
            computes over several weights or over whole ones (a norm in the chain, a factored moment) would depend
            on the placement: clip with `max_grad_norm`, and use elementwise optimizers such as AdamW.
        schedule: "gpipe", "1f1b", "interleaved_1f1b", "zero_bubble", "colocated" or "bubble_fill".
        schedule_costs: what actions cost, for schedules that choose their order by it ("bubble_fill"); by default
            estimated from the FLOPs of the programs, once the shapes of a batch are known.
        microbatches: parts that a batch is cut into.
        frozen: modules that do not train, or parts of them by path ("vision.layers"): they get no optimizer state, a
            backward program only where a gradient passes through them, and running statistics of whole modules stay.
        trained: the only modules, or parts of them ("vision.projector"), that train; None for all that is not frozen.
        learning_rate_scale: factor on a module's steps; 1 for the modules left out.
        max_grad_norm: clip the gradient to this norm, taken over all modules; None for no clipping.
        param_dtype: dtype of the weights that are trained.
        compute_dtype: dtype that weights are cast to, once a step, for the programs; None for no cast.
        remat: what the layers of a module keep for the backward: "none" computes nothing again (for the modules left
            out), "full" all but a layer's input, "dots" all but matrix products with weights, or a list of points, such
            as ["attention", "mlp"] of the models here: all but those.
        devices: devices that a placement counts; default `jax.devices()`.

    Over many processes (`jax.distributed`) every one makes the same trainer and calls the same methods in the
    same order. Each builds, compiles and holds only what its own devices run: a state has the stages of this process.

    Raises HetjaxError or PlacementError, before any program is compiled, for whatever does not fit.
    """

    def __init__(
        self,
        graph: ModuleGraph,
        placement: Placement,
        *,
        optimizer: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
        schedule: str = "1f1b",
        schedule_costs: Costs | None = None,
        microbatches: int = 1,
        frozen: Collection[str] = (),
        trained: Collection[str] | None = None,
        learning_rate_scale: Mapping[str, float] | None = None,
        max_grad_norm: float | None = None,
        param_dtype: DTypeLike = "float32",
        compute_dtype: DTypeLike | None = None,
        remat: Mapping[str, Remat | Sequence[str]] | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        _check_options(microbatches, max_grad_norm, param_dtype, compute_dtype)
        self.graph = graph
        devices = jax.devices() if devices is None else list(devices)
        self.placement = placement.resolve(len(devices))
        self.devices = tuple(devices)
        if jax.process_index() not in {device.process_index for device in devices}:
            raise ConfigError(
                f"process {jax.process_index()} of {jax.process_count()} has none of the {len(devices)} devices of the "
                "trainer; let it run no trainer, or give devices of every process"
            )
        self.stages = cut_graph(
            graph,
            self.placement,
            devices=devices,
            frozen=frozen,
            trained=trained,
            param_dtype=param_dtype,
            compute_dtype=compute_dtype,
            remat=_checked_remat(remat or {}, graph),
        )
        self.links = make_links(graph, self.stages)
        self.schedule: Schedule = build_schedule(
            schedule, stage_graph(self.stages, self.links), microbatches, schedule_costs
        )
        self.report = check(self.schedule)
        self._costs_given = schedule_costs is not None
        scales = dict(learning_rate_scale or {})
        _check_modules(scales, graph, "learning_rate_scale")
        for module in [each for each in scales if not any(s.trains for s in self.stages if s.module == each)]:
            raise ConfigError(f"learning_rate_scale names module '{module}', which is frozen; drop one of the two")
        optimizers = dict(optimizer) if isinstance(optimizer, Mapping) else dict.fromkeys(graph.modules, optimizer)
        _check_modules(optimizers, graph, "optimizer")
        self.updates = {
            stage.name: Update(
                stage,
                _of_module(optimizers, stage.module),
                learning_rate_scale=scales.get(stage.module, 1.0),
                max_grad_norm=max_grad_norm,
            )
            for stage in self.stages
            if stage.trains
        }
        self._executor: Executor | None = None

    @property
    def microbatches(self) -> int:
        """Parts that a batch is cut into."""
        return self.schedule.microbatches

    @property
    def compiled(self) -> Step:
        """Every program of a step; after `compile` or the first `step`."""
        if self._executor is None:
            raise ConfigError("the trainer has not compiled yet; call compile(batch) or step(state, batch) first")
        return self._executor.step

    def init(self, seed: int = 0, *, warm_start: Mapping[str, WeightSource] | None = None) -> TrainState:
        """Weights from the seed (or as given, for modules that came with weights) and fresh optimizer state.

        The weights depend on the seed and the module's name, not on the placement. Modules of `warm_start` take theirs
        from a checkpoint (`hetjax.checkpoint.warm_start.open_weights`) of any placement. Raises ConfigError where they
        do not fit.
        """
        _check_modules(warm_start or {}, self.graph, "warm_start")
        return initialize(self.graph, self.stages, self.updates, seed, warm_start)

    def compile(
        self, batch: Batch, *, progress: bool = False, also: Mapping[str, Callable[[], object]] | None = None
    ) -> None:
        """Compile all programs for batches of these shapes. Raises BatchError and GraphError.

        `batch` is {module: {input: array or jax.ShapeDtypeStruct}}, as for `step`. `also` holds further
        compilations to run at the same time, by name, e.g. those of `Generator.trace`.
        """
        step, tasks = self.trace(batch)
        compile_all({**tasks, **(also or {})}, progress=progress)
        self._executor = Executor(step)

    def trace(self, batch: Batch) -> tuple[Step, dict[str, Callable[[], object]]]:
        """Trace all programs of a step for batches of these shapes, and list what remains to compile, by name.

        Raises BatchError and GraphError.
        """
        inputs = input_shapes(batch, self.stages, self.links, self.microbatches)
        check_loss_tokens(batch, self.graph.sink)
        step, tasks = trace_step(self.stages, self.links, inputs, self.updates, self.schedule, self.devices)
        if self.schedule.name == "bubble_fill" and not self._costs_given:
            costs = estimated_costs(step)
            self.schedule = build_schedule("bubble_fill", self.schedule.graph, self.microbatches, costs)
            self.report = check(self.schedule)
            step = dataclasses.replace(step, schedule=self.schedule)
        return step, tasks

    def step(
        self,
        state: TrainState,
        batch: Batch,
        *,
        observe: Observer | None = None,
        announce: Announcer | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One training step, dispatched without waiting: (new state, {"loss", "grad_norm"} still on the devices).

        Consumes `state`. `batch` is {module: {input: array}} on the host, every array leading with the
        batch dim; `batch["loss_tokens"]`, or else the sum of the last module's `loss_weights`, is the
        count that the summed loss is divided by. `observe(action, result)` is called after each dispatch, and
        `announce(place, action)` before it, with the action's place in the schedule.

        With many processes a batch may hold, as `RowSubset`, the rows that this process needs (`rows_needed`).
        Every process gets the metrics.
        """
        self._check_state(state)
        return self._ready(batch).train(state, *self._place(batch), observe, announce)

    def loss_and_gradients(self, state: TrainState, batch: Batch) -> tuple[jax.Array, dict[str, dict[str, np.ndarray]]]:
        """The loss, and the gradient of each weight that trains, as host arrays by module and path; `state` is kept.

        With many processes all of them call it, and get all of it.
        """
        self._check_state(state)
        flight, loss = self._ready(batch).gradients(state, *self._place(batch))
        trained = [stage for stage in self.stages if stage.trains]
        return self.compiled.reports["loss"](loss), self._on_host(trained, flight.gradients, trained=True)

    def weights(self, state: TrainState) -> dict[str, dict[str, np.ndarray]]:
        """Every weight as host arrays by module and path, the stages of a module joined.

        With many processes all of them call it, and get all weights, which must fit on one device of each.
        """
        self._check_state(state)
        return self._on_host(self.stages, {name: stage.params for name, stage in state.stages.items()})

    def _on_host(
        self, stages: Sequence[Stage], arrays: Mapping[str, Arrays], *, trained: bool = False
    ) -> dict[str, dict[str, np.ndarray]]:
        """Host copies of these stages' arrays, which are the same in all processes, from those of the local ones."""
        copies = to_every_process(stages, arrays, self.devices, trained=trained)
        return merge_stages(self.graph, stages, copies)

    def _check_state(self, state: TrainState) -> None:
        names = [stage.name for stage in self.stages if stage.is_local]
        if sorted(state.stages) != sorted(names):
            raise StateError(
                f"the state is of stages {', '.join(state.stages)}, but this trainer has {', '.join(names)}; make one "
                "with init, or restore a checkpoint, which fits any placement"
            )
        for name, stage in state.stages.items():
            if any(array.is_deleted() for array in stage.params.values()):
                raise StateError(
                    f"stage '{name}': the state after {state.step} steps was consumed by a step; "
                    "go on with the state which that step returned"
                )

    def _ready(self, batch: Batch) -> Executor:
        if self._executor is None:
            self.compile(batch)
        return self._executor

    def _place(self, batch: Batch) -> tuple[dict[tuple[str, int], Arrays], jax.Array | None]:
        step, sink = self.compiled, self.compiled.sink
        inputs = place_inputs(batch, step.inputs, self.stages, self.microbatches)
        count = loss_tokens(batch, self.graph.sink)
        if not sink.is_local:
            return inputs, None
        if count is None:
            return inputs, step.scale(tuple(inputs[sink.name, i]["loss_weights"] for i in range(self.microbatches)))
        dtype = step.programs[sink.name].outputs["loss"].dtype
        return inputs, to_devices(np.asarray(1.0 / count, dtype), sink.replicated)


def _check_options(
    microbatches: int,
    max_grad_norm: float | None,
    param_dtype: DTypeLike,
    compute_dtype: DTypeLike | None,
) -> None:
    if not isinstance(microbatches, int):
        raise ConfigError(f"microbatches={microbatches!r}; give a whole number")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"max_grad_norm={max_grad_norm}; give a number above 0, or None for no clipping")
    for name, dtype in (("param_dtype", param_dtype), ("compute_dtype", compute_dtype)):
        try:
            floating = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
        except TypeError:
            floating = False
        if not floating:
            raise ConfigError(f'{name}={dtype!r} is no floating dtype; give e.g. "float32" or "bfloat16"')


def _checked_remat(remat: Mapping[str, Remat | Sequence[str]], graph: ModuleGraph) -> dict[str, Remat]:
    _check_modules(remat, graph, "remat")
    settings = {module: setting if isinstance(setting, str) else tuple(setting) for module, setting in remat.items()}
    for module, setting in settings.items():
        try:
            check_remat(setting)
        except ModelError as error:
            raise ConfigError(f"module '{module}': {error}") from None
    return settings


def _check_modules(named: Mapping[str, Any], graph: ModuleGraph, what: str) -> None:
    unknown = set(named) - set(graph.modules)
    if unknown:
        raise ConfigError(
            f"{what} names module '{min(unknown)}', which the graph lacks; its modules are {', '.join(graph.modules)}"
        )


def _of_module(optimizers: Mapping[str, optax.GradientTransformation], module: str) -> optax.GradientTransformation:
    if module not in optimizers:
        raise ConfigError(f"optimizer has no entry for module '{module}', which trains; add one or freeze the module")
    return optimizers[module]
