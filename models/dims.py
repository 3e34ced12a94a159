"""Names for the dims of weights and activations: all that a model says about layout.

A model names each dim ("batch", "seq", "embed", "heads", ...) and never mentions a mesh. Whoever
runs the model decides which mesh axis each name rides on: weights carry their names as metadata,
and activations pass through `constrain`, which does nothing until a layout is put in force.

Weight dims:      layers · embed · heads · kv_heads · head_dim · mlp · vocab · experts · patch
Activation dims:  batch · seq · embed · heads · kv_heads · head_dim · mlp · vocab · experts
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from flax import nnx

Dims = tuple[str | None, ...]
Constraint = Callable[[jax.Array, Dims], jax.Array]

_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar("constraint", default=None)


def named(init: Callable[..., jax.Array], *dims: str | None) -> Callable[..., jax.Array]:
    """Attach dim names, one a dim of the weight, to an initializer."""
    # Not eager: the names are the layout's to read later, so that a model can be built without any mesh.
    return nnx.with_metadata(init, out_sharding=dims, eager_sharding=False)


def constrain(x: jax.Array, *dims: str | None) -> jax.Array:
    """Say which dims `x` has, so that the layout in force can shard it; identity without one."""
    constraint = _constraint.get()
    if constraint is None:
        return x
    if len(dims) != x.ndim:
        raise ValueError(f"constrain: {len(dims)} dim names {dims} for an array of shape {x.shape}")
    return constraint(x, dims)


@contextlib.contextmanager
def layout_in_force(constraint: Constraint) -> Iterator[None]:
    """Apply `constraint(x, dims)` at every `constrain` call traced inside the block."""
    token = _constraint.set(constraint)
    try:
        yield
    finally:
        _constraint.reset(token)
