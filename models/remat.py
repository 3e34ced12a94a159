"""Choose what a forward pass keeps for its backward, and what the backward computes again.

Models say where: `rematerialized` wraps a layer, `point` names a tensor worth keeping. Whoever runs the
model says what, by `remat_in_force`; without it everything is kept that the backward reads.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name

from hetjax.models.errors import ModelError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

POINTS = ("attention", "mamba", "mlp", "convolution")
"""Names of the points in this package's layers: what each kind of part adds to the residual stream."""

PRODUCT = "product"
"""Name of what `hetjax.models.parallel.sharded_linear` makes where a layout splits it: matrix products with weights."""

INSEPARABLE = "inseparable_function"
"""Name of the functions that `inseparable` returns, by which whoever splits a backward knows them."""

Remat = str | tuple[str, ...]
"""What is kept of a layer: "none" is computed again, "full" all but its input, "dots" all but matrix products with
weights, or names of points: all but those and the layer's input."""


@dataclasses.dataclass
class InForce:
    """A setting in force.

    Attributes:
        remat: the setting.
        layers: how many layers asked for it.
    """

    remat: Remat
    layers: int = 0


_in_force: contextvars.ContextVar[InForce | None] = contextvars.ContextVar("remat", default=None)


def check_remat(remat: Remat) -> None:
    """Raise ModelError for a setting that is none."""
    if isinstance(remat, str) and remat not in ("none", "full", "dots"):
        raise ModelError(f"remat is {remat!r}; give none, full, dots, or a list of points such as {list(POINTS)}")
    if not isinstance(remat, str) and (not remat or not all(isinstance(name, str) for name in remat)):
        raise ModelError(f"remat is {remat!r}; a list names points, one or more, such as {list(POINTS)}")


@contextlib.contextmanager
def remat_in_force(remat: Remat) -> Iterator[InForce]:
    """Apply a setting to the layers traced inside the block."""
    setting = InForce(remat)
    token = _in_force.set(setting)
    try:
        yield setting
    finally:
        _in_force.reset(token)


def rematerialized(layer: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a layer, as a function of arrays, that keeps what the setting in force says."""
    setting = _in_force.get()
    if setting is None or setting.remat == "none":
        return layer
    setting.layers += 1
    # A scan's body runs once a layer, so that nothing of it could be merged with the forward's own.
    return jax.checkpoint(layer, policy=_policy(setting.remat), prevent_cse=False)


def whole(function: Callable[Arguments, Result], remat: Remat) -> Callable[Arguments, Result]:
    """Return a function that keeps what a setting says, for a model none of whose layers asks."""
    return function if remat == "none" else jax.checkpoint(function, policy=_policy(remat))


def point(x: jax.Array, name: str) -> jax.Array:
    """Name a tensor, so that a setting may keep it."""
    return checkpoint_name(x, name)


def inseparable(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Return a function whose work stays together where a backward is split in two.

    For a loop that drops what it makes: split, its second part would read all of that from memory.
    """

    def inseparable_function(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return function(*args, **kwargs)

    # A function jitted inside of another keeps its name, and nothing else of it is changed by that.
    inseparable_function.__name__ = INSEPARABLE
    return jax.jit(inseparable_function)


def _policy(remat: Remat) -> Callable[..., bool]:
    policies = jax.checkpoint_policies
    if remat == "full":
        return policies.nothing_saveable
    if remat == "dots":
        # Products that a layout splits are functions with a backward of their own, known by name.
        named = policies.save_only_these_names(PRODUCT)
        return policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, named)
    return policies.save_only_these_names(*remat)
