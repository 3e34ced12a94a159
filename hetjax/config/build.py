"""Build the parts of a run from its settings; each function takes the settings that it reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial

import jax

from hetjax.config.build_loader import row_capacity
from hetjax.config.build_optimizer import build_optimizers, frozen_names
from hetjax.config.model_config import ModelConfig
from hetjax.config.run_config import TrainConfig
from hetjax.data import DataConfig
from hetjax.data.chat import RowCapacity, row_routes, row_shapes
from hetjax.data.modalities import MODALITIES
from hetjax.data.modalities.modality import ArraySpec
from hetjax.errors import ConfigError
from hetjax.graph import ModuleGraph
from hetjax.meshes import Placement
from hetjax.models.components import build_component
from hetjax.models.kernels.attention_scores import Packing
from hetjax.models.lora import with_lora
from hetjax.schedule import Costs
from hetjax.stages.batch import ROUTES
from hetjax.trainer import Trainer

BatchShapes = dict[str, dict[str, jax.ShapeDtypeStruct]]
"""Shapes and dtypes of a batch, by module and input."""


# XLA ends a process whose simulated devices do not all come to a collective within 40 s, as on a busy machine.
_PATIENCE = (
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
)


def use_devices(fake_devices: int | None, dtypes: Sequence[str | None], *, processes: int = 1) -> None:
    """Set the devices and the widest dtype that JAX uses in this process; must run before JAX is first used.

    Args:
        fake_devices: CPU devices over all processes; None for the devices there are.
        dtypes: Dtypes of a run; JAX computes in 64 bits only if one of them is "float64".
        processes: How many processes the job has.

    Raises ConfigError where `fake_devices` does not divide over the processes.
    """
    if fake_devices is not None:
        if fake_devices % processes:
            raise ConfigError(
                f"fake_devices is {fake_devices}, for all processes together, which is not divisible by "
                f"{processes} processes; change one of the two"
            )
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", fake_devices // processes)
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = " ".join([given, *(flag for flag in _PATIENCE if flag.split("=")[0] not in given)])
    if "float64" in dtypes:
        jax.config.update("jax_enable_x64", True)


def build_graph(model: ModelConfig) -> ModuleGraph:
    """Build the module graph of a model: its encoders, if any, into the language model."""
    components = model.components
    modules = {name: partial(build_component, component) for name, component in components.items()}
    modules |= {name: with_lora(modules[name], lora) for name, lora in model.lora.items()}
    edges = [
        edge
        for modality in MODALITIES.values()
        if modality.placeholder.module in components
        for edge in modality.edges(components[modality.placeholder.module])
    ]
    return ModuleGraph(modules, list(dict.fromkeys(edges)))  # modalities of one encoder share its edges


def build_trainer(
    config: TrainConfig, schedule_costs: Costs | None = None, devices: Sequence[jax.Device] | None = None
) -> Trainer:
    """Build the trainer of a run. Raises HetjaxError or PlacementError for what does not fit.

    `schedule_costs` are what the schedule "bubble_fill" chooses its order by; None for an estimate. `devices` are those
    that the placement counts; None for all there are.
    """
    settings = config.optimizer
    graph = build_graph(config.model)
    trainer = Trainer(
        graph,
        Placement(config.placement),
        optimizer=build_optimizers(settings, graph, config.steps),
        schedule=config.schedule,
        schedule_costs=schedule_costs,
        microbatches=config.microbatches,
        frozen=frozen_names(settings, graph),
        trained=settings.trained,
        # In the rates of the optimizers already, where an average of the weights sees it; here for its names alone.
        learning_rate_scale=dict.fromkeys(settings.learning_rate_scale, 1.0),
        max_grad_norm=settings.max_grad_norm,
        skip_bad_steps=config.bad_steps > 0,
        param_dtype=config.param_dtype,
        compute_dtype=config.compute_dtype,
        remat=config.remat,
        offload=config.offload,
        devices=devices,
        kernels=config.kernels,
    )
    for module in config.model.lora:
        if not any(stage.trains for stage in trainer.stages if stage.module == module):
            raise ConfigError(
                f"model.lora has low-rank maps for '{module}', which optimizer.frozen or optimizer.trained freezes "
                "whole; drop one of the two"
            )
    return trainer


def batch_shapes(data: DataConfig, model: ModelConfig) -> BatchShapes:
    """Return the shapes of a training batch, the largest of them where it may have several. Raises ConfigError."""
    return shapes_of_rows(row_capacity(data, model), data.batch_size)


def shapes_of_rows(capacity: RowCapacity, batch_size: int) -> BatchShapes:
    """Return the shapes of a training batch of so many rows with this capacity."""
    routes = {ROUTES: row_routes(capacity)} if capacity.config.balance else {}
    return batched({**row_shapes(capacity, training=True), **routes}, batch_size)


def assumed_packings(data: DataConfig, model: ModelConfig) -> dict[str, Packing]:
    """Return by module the segments that are assumed where data alone tell them: the largest that settings allow."""
    return row_capacity(data, model).packings


def batched(shapes: Mapping[str, Mapping[str, ArraySpec]], samples: int) -> BatchShapes:
    """Return the shapes of a batch of so many rows, given those of one."""
    return {
        module: {port: jax.ShapeDtypeStruct((samples, *shape), dtype) for port, (shape, dtype) in ports.items()}
        for module, ports in shapes.items()
    }
