"""Names for the dims of weights and activations: all that a model says about layout.

A model names each dim ("batch", "seq", "embed", "heads", ...) and never mentions a mesh. Whoever runs the model decides
which mesh axis each name rides on: weights carry their names as metadata (`named`), and activations pass through
`constrain`, which does nothing until a layout is put in force (`hetjax.models.parallel.layout_in_force`).

Weight dims:      layers · embed · heads · kv_heads · head_dim · mlp · vocab · experts · patch · state · width
Activation dims:  batch · seq · residual_seq · embed · heads · kv_heads · head_dim · mlp · vocab · experts · chosen

`width` is that of vectors: norm scales and biases as wide as the residual stream, and learned positions. `residual_seq`
is the sequence between attentions and MLPs, where positions have nothing to do with each other; it may be split further
than `seq`, the sequence inside of both. `chosen` are the experts that a token goes to.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from flax import nnx

Dims = tuple[str | None, ...]
"""A name for each dim of an array; None for a dim that no layout splits."""

SEQUENCE: Dims = ("batch", "seq")
"""The leading dims of an activation inside attention and MLP."""
RESIDUAL: Dims = ("batch", "residual_seq")
"""The leading dims of the residual stream, between attentions and MLPs."""
CHOSEN = "chosen"
"""The dim of the experts that each token is sent to."""

Constraint = Callable[[jax.Array, Dims], jax.Array]
"""(array, its dims) -> the array, sharded."""

_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar("constraint", default=None)


def named(init: Callable[..., jax.Array], *dims: str | None) -> Callable[..., jax.Array]:
    """Attach dim names, one a dim of the weight, to an initializer."""
    # Not eager: the names are the layout's to read later, so that a model can be built without any mesh.
    return nnx.with_metadata(init, out_sharding=dims, eager_sharding=False)


def constrain(x: jax.Array, *dims: str | None) -> jax.Array:
    """Say which dims `x` has, so that the layout in force can shard it; identity without one.

    Raises ValueError where there is not one name a dim.
    """
    constraint = _constraint.get()
    if constraint is None:
        return x
    if len(dims) != x.ndim:
        raise ValueError(f"constrain: {len(dims)} dim names {dims} for an array of shape {x.shape}")
    return constraint(x, dims)


@contextlib.contextmanager
def constraint_in_force(constraint: Constraint) -> Iterator[None]:
    """Apply `constraint(x, dims)` at every `constrain` call traced inside the block."""
    token = _constraint.set(constraint)
    try:
        yield
    finally:
        _constraint.reset(token)
