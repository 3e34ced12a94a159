"""Check a trainer's options, and make the updates that they ask for."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hetjax.errors import ConfigError
from hetjax.execution.host_copies import host_memory_kind
from hetjax.graph import ModuleGraph, port_of
from hetjax.meshes import local_devices
from hetjax.models import ModelError
from hetjax.models.remat import Remat, check_remat
from hetjax.optimizers.coupling import make_layerwise
from hetjax.optimizers.layerwise import Transform
from hetjax.optimizers.module_weights import module_weights
from hetjax.programs.update import Update
from hetjax.stages.stage import Stage

Optimizers = Transform | Mapping[str, Transform]
"""One optimizer for all modules, or one for each by name."""

Microbatches = int | Mapping[str, int]
"""The parts that a batch is split into: for all modules, or by module."""


def check_options(
    *,
    max_grad_norm: float | None,
    param_dtype: DTypeLike,
    compute_dtype: DTypeLike | None,
    devices: Sequence[jax.Device],
) -> None:
    """Raise ConfigError for numbers and dtypes that mean nothing, and where this process has none of the devices."""
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"max_grad_norm={max_grad_norm}; give a number above 0, or None for no clipping")
    for name, dtype in (("param_dtype", param_dtype), ("compute_dtype", compute_dtype)):
        try:
            floating = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
        except TypeError:
            floating = False
        if not floating:
            raise ConfigError(f'{name}={dtype!r} is no floating dtype; give e.g. "float32" or "bfloat16"')
    if not local_devices(devices):
        raise ConfigError(
            f"process {jax.process_index()} of {jax.process_count()} has none of the {len(devices)} devices of the "
            "trainer; let it run no trainer, or give devices of every process"
        )


def module_counts(microbatches: Microbatches, graph: ModuleGraph) -> dict[str, int]:
    """Return how many microbatches each module has; a module left out has as many as the one that it feeds.

    Raises ConfigError for numbers that mean nothing, and where that of a module does not divide those of its readers.
    """
    named = microbatches if isinstance(microbatches, Mapping) else {graph.sink: microbatches}
    check_modules(named, graph, "microbatches")
    for module, count in named.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            which = f"microbatches of module '{module}'" if isinstance(microbatches, Mapping) else "microbatches"
            raise ConfigError(f"{which}={count!r}; give a whole number, 1 or more")
    if graph.sink not in named:
        raise ConfigError(
            f"microbatches={dict(named)} has no number for module '{graph.sink}', which holds the loss; add one"
        )
    counts: dict[str, int] = {}
    for module in reversed(graph.order):
        readers = {port_of(edge.destination).module for edge in graph.outputs(module)}
        if not readers and named.get(module, named[graph.sink]) != named[graph.sink]:
            raise ConfigError(
                f"microbatches: modules '{module}' ({named[module]}) and '{graph.sink}' ({named[graph.sink]}) both end "
                "the graph; microbatches are those of the loss, so give both the same number"
            )
        counts[module] = named.get(module, math.gcd(*(counts[reader] for reader in readers)) or named[graph.sink])
        for reader in sorted(readers):
            if counts[reader] % counts[module]:
                raise ConfigError(
                    f"microbatches: module '{module}' has {counts[module]} and feeds '{reader}', which has "
                    f"{counts[reader]}; a module takes one or several whole microbatches of those that it feeds at "
                    f"once, so give '{module}' a number that divides {counts[reader]}, or '{reader}' a multiple of "
                    f"{counts[module]}"
                )
    return counts


def check_remat_settings(remat: Mapping[str, Remat | Sequence[str]], graph: ModuleGraph) -> dict[str, Remat]:
    """Return the settings by module, lists as tuples. Raises ConfigError for an unknown module or setting."""
    check_modules(remat, graph, "remat")
    settings = {module: setting if isinstance(setting, str) else tuple(setting) for module, setting in remat.items()}
    for module, setting in settings.items():
        try:
            check_remat(setting)
        except ModelError as error:
            raise ConfigError(f"module '{module}': {error}") from None
    return settings


def check_modules(names: Collection[str], graph: ModuleGraph, option: str) -> None:
    """Raise ConfigError where the keys of an option name a module that the graph lacks."""
    unknown = set(names) - set(graph.modules)
    if unknown:
        raise ConfigError(
            f"{option} names module '{min(unknown)}', which the graph lacks; its modules are {', '.join(graph.modules)}"
        )


def check_offload(modules: Collection[str], graph: ModuleGraph, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return the modules that are offloaded, each once.

    Raises ConfigError for an unknown module, one that has nothing to move, and devices that can read no memory of their
    host.
    """
    check_modules(modules, graph, "offload")
    for module in modules:
        own = [stage for stage in stages if stage.module == module]
        if not any(stage.params for stage in own):
            raise ConfigError(f"offload names module '{module}', which has no weights to move; leave it out")
        for device in local_devices([device for stage in own for device in stage.mesh.devices.flat]):
            host_memory_kind(device)
    return tuple(dict.fromkeys(modules))


def make_updates(
    graph: ModuleGraph,
    stages: Sequence[Stage],
    optimizer: Optimizers,
    *,
    learning_rate_scale: Mapping[str, float],
    max_grad_norm: float | None,
    late_gradients: Collection[str] = (),
) -> dict[str, Update]:
    """Return the update of each stage that trains, by stage name; modules of `late_gradients` as in `Update`.

    Raises ConfigError for options of a module that the graph lacks, a learning rate of a frozen module, a module that
    trains without an optimizer, and an optimizer that `hetjax.optimizers.coupling` refuses.
    """
    check_modules(learning_rate_scale, graph, "learning_rate_scale")
    training = [stage for stage in stages if stage.trains]
    for module in learning_rate_scale:
        if module not in {stage.module for stage in training}:
            raise ConfigError(f"learning_rate_scale names module '{module}', which is frozen; drop one of the two")
    optimizers = dict(optimizer) if isinstance(optimizer, Mapping) else dict.fromkeys(graph.modules, optimizer)
    check_modules(optimizers, graph, "optimizer")
    for stage in training:
        if stage.module not in optimizers:
            raise ConfigError(
                f"optimizer has no entry for module '{stage.module}', which trains; add one or freeze the module"
            )
    updates: dict[str, Update] = {}
    for module in dict.fromkeys(stage.module for stage in training):
        own = [stage for stage in training if stage.module == module]
        layerwise, needs = make_layerwise(
            module, optimizers[module], module_weights(graph, own), scale=learning_rate_scale.get(module, 1.0)
        )
        for stage in own:
            updates[stage.name] = Update(
                stage,
                layerwise,
                needs=needs,
                max_grad_norm=max_grad_norm,
                late_gradients=module in late_gradients,
            )
    return updates
