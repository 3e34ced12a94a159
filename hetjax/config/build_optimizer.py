"""Build the optimizer of each module from the settings of a run."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import optax

from hetjax.config.optimizer_config import GroupConfig, OptimizerConfig
from hetjax.errors import ConfigError
from hetjax.graph import ModuleGraph
from hetjax.optimizers.average import with_average
from hetjax.optimizers.muon import muon_weights
from hetjax.optimizers.named import make_named, takes
from hetjax.optimizers.schedules import make_schedule
from hetjax.stages.flat_state import Arrays, flatten_module

_MASKS = ("mask", "weight_decay_mask")
"""The arguments of optax's optimizers that say which weights decay."""


def learning_rate(config: OptimizerConfig, steps: int, scale: float = 1.0) -> Callable[[int], float]:
    """Return the learning rate, times a factor, as a function of the steps done."""
    rates = make_schedule(
        config.schedule,
        peak=config.learning_rate,
        final=config.final_learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
        steps=steps,
    )
    return rates if scale == 1 else lambda done: scale * rates(done)


def decays(path: str, dims: int) -> bool:
    """Return whether weight decay applies to a weight: to matrices, not to scales, biases and other vectors.

    `dims` are those of one layer.
    """
    return path.rpartition("/")[2] not in ("scale", "bias") and dims > 1


def frozen_names(settings: OptimizerConfig, graph: ModuleGraph) -> list[str]:
    """Return `frozen`, and the weights of groups that are frozen. Raises ConfigError as `group_of_weights`."""
    groups = group_of_weights(settings, graph)
    grouped = [
        f"{module}.{path.replace('/', '.')}"
        for module, of_path in groups.items()
        for path, group in of_path.items()
        if group is not None and settings.groups[group].frozen
    ]
    return [*settings.frozen, *grouped]


def build_optimizers(
    settings: OptimizerConfig, graph: ModuleGraph, steps: int
) -> dict[str, optax.GradientTransformation]:
    """Build the optimizer of each module of a run of so many steps; the trainer clips and freezes.

    Raises ConfigError for a group that names no weights, arguments that optax refuses and a scale of an unknown module.
    """
    groups = group_of_weights(settings, graph)
    optimizers = {}
    for module in graph.modules:
        optimizer = _module_optimizer(settings, graph, module, groups[module], steps)
        optimizers[module] = optimizer if settings.ema is None else with_average(optimizer, settings.ema)
    return optimizers


def group_of_weights(settings: OptimizerConfig, graph: ModuleGraph) -> dict[str, dict[str, int | None]]:
    """Return the group of each weight by module and path, None where no group names it.

    Raises ConfigError for a pattern that names no weight.
    """
    paths = {module: list(flatten_module(graph.abstract(module))[1]) for module in graph.modules}
    names = {(module, path): f"{module}.{path.replace('/', '.')}" for module in paths for path in paths[module]}
    for group in settings.groups:
        for pattern in group.paths:
            if not any(_matches(name, pattern) for name in names.values()):
                parts = sorted({".".join(name.split(".")[:2]) for name in names.values()})
                raise ConfigError(
                    f"optimizer.groups names '{pattern}', and no weight is of that path; parts of the model are "
                    f"{', '.join(parts)}, and * stands for any text"
                )
    return {module: {path: _first(settings.groups, names[module, path]) for path in paths[module]} for module in paths}


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def _first(groups: list[GroupConfig], name: str) -> int | None:
    return next((i for i, group in enumerate(groups) if any(_matches(name, each) for each in group.paths)), None)


def _module_optimizer(
    settings: OptimizerConfig, graph: ModuleGraph, module: str, groups: Mapping[str, int | None], steps: int
) -> optax.GradientTransformation:
    scale = settings.learning_rate_scale.get(module, 1.0)
    used = sorted({group for group in groups.values() if group is not None and not settings.groups[group].frozen})
    of_others = _one_optimizer(settings, graph, module, steps, scale, None)
    if not used:
        return of_others
    labels = {path: "others" if group not in used else str(group) for path, group in groups.items()}
    transforms = {"others": of_others}
    for group in used:
        own = settings.groups[group]
        transforms[str(group)] = _one_optimizer(
            settings, graph, module, steps, scale * own.learning_rate_scale, own.weight_decay
        )
    return optax.partition(transforms, lambda params: {path: labels[path] for path in params})


def _one_optimizer(
    settings: OptimizerConfig,
    graph: ModuleGraph,
    module: str,
    steps: int,
    scale: float,
    weight_decay: float | None,
) -> optax.GradientTransformation:
    """The optimizer of some weights; with a weight decay of their own it is for all of them."""
    arguments: dict[str, Any] = dict(settings.all_arguments)
    if weight_decay is not None and takes(settings.name, "weight_decay"):
        arguments["weight_decay"] = weight_decay
        if takes(settings.name, "adam_weight_decay"):  # of those weights of the group that muon leaves to Adam
            arguments["adam_weight_decay"] = weight_decay
    for mask in _MASKS:
        if weight_decay is None and takes(settings.name, mask) and mask not in arguments:
            arguments[mask] = _decaying
    dimensions = "muon_weight_dimension_numbers"
    if takes(settings.name, dimensions) and dimensions not in arguments:
        arguments[dimensions] = muon_weights(graph, module)
    rate = learning_rate(settings, steps, scale)
    if takes(settings.name, "adam_learning_rate") and arguments.get("adam_learning_rate") is not None:
        # Its weights warm up and cool down like the others.
        ratio = arguments["adam_learning_rate"] / settings.learning_rate
        arguments["adam_learning_rate"] = lambda done: ratio * rate(done)
    return make_named(settings.name, rate, arguments)


def _decaying(params: Arrays) -> dict[str, bool]:
    """Which weights decay; of those that a group leaves to others there is no array."""
    return {path: decays(path, getattr(param, "ndim", 0)) for path, param in params.items()}
