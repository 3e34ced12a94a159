"""Build the parts of a run from its settings; each function takes the settings that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import optax

from hetjax.config.build_loader import row_capacity
from hetjax.config.model_config import ModelConfig
from hetjax.config.run_config import OptimizerConfig, TrainConfig
from hetjax.data import DataConfig
from hetjax.data.chat import row_shapes
from hetjax.data.modalities import MODALITIES
from hetjax.data.modalities.modality import ArraySpec
from hetjax.errors import ConfigError
from hetjax.graph import ModuleGraph
from hetjax.meshes import Placement
from hetjax.models.components import build_component
from hetjax.models.kernels.attention_scores import Packing
from hetjax.models.parts.groups import groups_around
from hetjax.schedule import Costs
from hetjax.trainer import Trainer

BatchShapes = dict[str, dict[str, jax.ShapeDtypeStruct]]
"""Shapes and dtypes of a batch, by module and input."""


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
    if "float64" in dtypes:
        jax.config.update("jax_enable_x64", True)


def build_graph(model: ModelConfig) -> ModuleGraph:
    """Build the module graph of a model: its encoders, if any, into the language model."""
    components = model.components
    modules = {name: partial(build_component, component) for name, component in components.items()}
    edges = [
        edge
        for modality in MODALITIES.values()
        if modality.placeholder.module in components
        for edge in modality.edges(components[modality.placeholder.module])
    ]
    return ModuleGraph(modules, list(dict.fromkeys(edges)))  # modalities of one encoder share its edges


def learning_rate(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the steps done.

    It rises linearly to the peak, then falls by half a cosine to the final one at the last step.
    """
    rates = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(steps, config.warmup_steps + 1),
        end_value=config.final_learning_rate,
    )
    # Counted from 1: a rate of zero would waste the first step.
    return lambda done: rates(done + 1)


def decays(path: str, dims: int) -> bool:
    """Return whether weight decay applies to a weight: to matrices, not to scales, biases and other vectors.

    Stacks lead with a dim of layers, and those of a pattern (`hetjax.models.parts.pattern`) with one for each group.
    """
    stacked = max(1, groups_around(path)) if path.startswith("layers/") else 0
    return path.rpartition("/")[2] not in ("scale", "bias") and dims - stacked > 1


def build_optimizer(settings: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Build the optimizer of a run of so many steps; the trainer clips, freezes and scales by module."""
    return optax.adamw(
        learning_rate(settings, steps),
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=lambda params: {path: decays(path, param.ndim) for path, param in params.items()},
    )


def build_trainer(
    config: TrainConfig, schedule_costs: Costs | None = None, devices: Sequence[jax.Device] | None = None
) -> Trainer:
    """Build the trainer of a run. Raises HetjaxError or PlacementError for what does not fit.

    `schedule_costs` are what the schedule "bubble_fill" chooses its order by; None for an estimate. `devices` are those
    that the placement counts; None for all there are.
    """
    settings = config.optimizer
    return Trainer(
        build_graph(config.model),
        Placement(config.placement),
        optimizer=build_optimizer(settings, config.steps),
        schedule=config.schedule,
        schedule_costs=schedule_costs,
        microbatches=config.microbatches,
        frozen=settings.frozen,
        trained=settings.trained,
        learning_rate_scale=settings.learning_rate_scale,
        max_grad_norm=settings.max_grad_norm,
        param_dtype=config.param_dtype,
        compute_dtype=config.compute_dtype,
        remat=config.remat,
        offload=config.offload,
        devices=devices,
        kernels=config.kernels,
    )


def batch_shapes(data: DataConfig, model: ModelConfig) -> BatchShapes:
    """Return the shapes of a training batch, as the data pipeline makes them. Raises ConfigError."""
    return batched(row_shapes(row_capacity(data, model), training=True), data.batch_size)


def assumed_packings(data: DataConfig, model: ModelConfig) -> dict[str, Packing]:
    """Return by module the segments that are assumed where data alone tell them: the largest that settings allow."""
    return row_capacity(data, model).packings


def batched(shapes: Mapping[str, Mapping[str, ArraySpec]], samples: int) -> BatchShapes:
    """Return the shapes of a batch of so many rows, given those of one."""
    return {
        module: {port: jax.ShapeDtypeStruct((samples, *shape), dtype) for port, (shape, dtype) in ports.items()}
        for module, ports in shapes.items()
    }
