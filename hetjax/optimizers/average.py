"""Keeps a running average of the weights in the optimizer's state, where checkpoints and stages find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from hetjax.stages.flat_state import Arrays


class AverageState(NamedTuple):
    """The average of a module's trained weights, by path.

    Attributes:
        average: laid out as the weights.
    """

    average: optax.Params


def with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Return an optimizer that also averages the weights, and whose updates are those of `optimizer`.

    After each step average = decay * average + (1 - decay) * weights. It begins with the first weights, so that no
    correction is due.
    """
    return optax.chain(optimizer, _average(decay))


def averaged(params: Arrays, opt_state: optax.OptState | None) -> Arrays:
    """Return a stage's weights with those that train replaced by their average.

    That of `with_average`, whose arrays these then are, or of a schedule-free optimizer (Defazio et al. 2024); weights
    of a state without either stay as they are.
    """
    for node in jax.tree.leaves(opt_state, is_leaf=_keeps_average):
        if isinstance(node, AverageState):
            own = _held(node.average)
            params = {**params, **{path: array.astype(params[path].dtype) for path, array in own.items()}}
        elif isinstance(node, ScheduleFreeState):
            paths = _held(node.z)
            own = {path: params[path] for path in paths}
            params = {**params, **schedule_free_eval_params(node._replace(z=paths), own)}
    return params


def _held(arrays: Mapping[str, object]) -> Arrays:
    """The arrays of a part of an optimizer's state that it has here, and not in another stage or group."""
    return {path: array for path, array in arrays.items() if isinstance(array, jax.Array)}


def _average(decay: float) -> optax.GradientTransformation:
    def init(params: optax.Params) -> AverageState:
        # In bfloat16 a decay of 0.999 is 1, and what a step adds is lost to rounding.
        return AverageState(jax.tree.map(lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32)), params))

    def update(updates, state: AverageState, params: optax.Params):
        after = optax.apply_updates(params, updates)
        return updates, AverageState(optax.incremental_update(after, state.average, 1 - decay))

    return optax.GradientTransformation(init, update)


def _keeps_average(node: object) -> bool:
    return isinstance(node, AverageState | ScheduleFreeState)
