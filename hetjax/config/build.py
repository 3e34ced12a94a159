"""From the settings of a run to its parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from hetjax.config.build_processor import row_room
from hetjax.config.run_config import OptimizerConfig, TrainConfig
from hetjax.data.chat import row_shapes
from hetjax.data.modalities import MODALITIES
from hetjax.errors import ConfigError
from hetjax.graph import ModuleGraph
from hetjax.meshes import Placement
from hetjax.models import VisionConfig
from hetjax.models.components import build_component
from hetjax.schedule import Costs
from hetjax.trainer import Trainer


def use_devices(config: TrainConfig, processes: int = 1) -> None:
    """Settle the devices of this process, one of so many; must run before JAX is first used. Raises ConfigError."""
    if config.fake_devices is not None:
        if config.fake_devices % processes:
            raise ConfigError(
                f"fake_devices is {config.fake_devices}, for all processes together, which is not divisible by "
                f"{processes} processes; change one of the two"
            )
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", config.fake_devices // processes)
    if "float64" in (config.param_dtype, config.compute_dtype):
        jax.config.update("jax_enable_x64", True)


def build_graph(config: TrainConfig) -> ModuleGraph:
    """The module graph of the settings: encoders, where there are some, into the language model."""
    components = config.model.components
    modules = {name: partial(build_component, component) for name, component in components.items()}
    edges = [
        edge
        for modality in MODALITIES.values()
        if modality.placeholder.module in components
        for edge in modality.edges(components[modality.placeholder.module])
    ]
    return ModuleGraph(modules, list(dict.fromkeys(edges)))  # modalities of one encoder share its edges


def tokens_per_image(config: TrainConfig) -> int:
    """Rows of the fused sequence that one image of fixed size takes."""
    vision = config.model.components.get("vision")
    return vision.tokens_per_image if isinstance(vision, VisionConfig) else 0


def learning_rate(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """The learning rate by steps done: linear to the peak, then half a cosine to the final one at the last step."""
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
    """Whether weight decay applies: to matrices, not to scales, biases and other vectors.

    Stacks lead with a dim of layers, and those of a pattern (`hetjax.models.parts.pattern`) with one for each group.
    """
    *places, name = path.split("/")
    stacked = max(1, sum(place.startswith("group") for place in places)) if path.startswith("layers/") else 0
    return name not in ("scale", "bias") and dims - stacked > 1


def build_trainer(
    config: TrainConfig, graph: ModuleGraph | None = None, schedule_costs: Costs | None = None
) -> Trainer:
    """The trainer of the settings. Raises HetjaxError or PlacementError for what does not fit."""
    settings = config.optimizer
    optimizer = optax.adamw(
        learning_rate(settings, config.steps),
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=lambda params: {path: decays(path, param.ndim) for path, param in params.items()},
    )
    return Trainer(
        graph or build_graph(config),
        Placement(config.placement),
        optimizer=optimizer,
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
    )


def batch_shapes(config: TrainConfig) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of a training batch, as the data pipeline makes them."""
    capacity = row_room(config.data, config.model)
    if capacity is not None:
        return _batched(row_shapes(capacity, training=True), config.data.batch_size)
    shapes = prompt_shapes(config, config.data.batch_size)
    rows = shapes["llm"]["tokens"].shape
    shapes["llm"]["labels"] = jax.ShapeDtypeStruct(rows, jnp.int32)
    shapes["llm"]["loss_weights"] = jax.ShapeDtypeStruct(rows, jnp.float32)
    return shapes


def prompt_shapes(config: TrainConfig, samples: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of a batch of prompts to be answered."""
    capacity = row_room(config.data, config.model)
    if capacity is not None:
        return _batched(row_shapes(capacity, training=False), samples)
    data = config.data
    llm = {"tokens": jax.ShapeDtypeStruct((samples, data.seq_len), jnp.int32)}
    if not tokens_per_image(config):
        return {"llm": llm}
    positions = (samples, data.images_per_sample * tokens_per_image(config))
    llm["image_positions"] = jax.ShapeDtypeStruct(positions, jnp.int32)
    images = (samples, data.images_per_sample, data.image_size, data.image_size, 3)
    return {"vision": {"images": jax.ShapeDtypeStruct(images, jnp.float32)}, "llm": llm}


def _batched(shapes: dict, samples: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    return {
        module: {port: jax.ShapeDtypeStruct((samples, *shape), dtype) for port, (shape, dtype) in ports.items()}
        for module, ports in shapes.items()
    }
