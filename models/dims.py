"""Names for the dims of weights and activations: all that a model says about layout.

A model names each dim ("batch", "seq", "embed", "heads", ...) and never mentions a mesh. Whoever
runs the model decides which mesh axis each name rides on: weights carry their names as metadata,
and activations pass through `constrain`, which does nothing until a layout is put in force.
A part whose communication is ours to choose (a ring, an exchange) asks with `split_of` which mesh
axes a dim rides on, and runs by `jax.shard_map` over them.

Weight dims:      layers · embed · heads · kv_heads · head_dim · mlp · vocab · experts · patch · state · width
Activation dims:  batch · seq · residual_seq · embed · heads · kv_heads · head_dim · mlp · vocab · experts

`width` is that of vectors: norm scales and biases as wide as the residual stream, and learned positions. `residual_seq`
is the sequence between attentions and MLPs, where rows have nothing to do with each other; it may be split further than
`seq`, the sequence inside of both.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
from flax import nnx
from jax.sharding import Mesh

Dims = tuple[str | None, ...]

#: Rows of an activation inside attention and MLP, and between them.
ROWS: Dims = ("batch", "seq")
RESIDUAL: Dims = ("batch", "residual_seq")

Constraint = Callable[[jax.Array, Dims], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How a dim is split: over `axes` of `mesh`, into `degree` parts."""

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def degree(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """What parts that communicate by themselves ask of a layout.

    Attributes:
        mesh: the mesh that the model runs on.
        axes_of: the axes that an activation's dim rides on, those of degree 1 left out.
        weight_axes_of, gradient_axes_of: the axes that a dim rides on in the weights that programs are given, and in
            their gradients; without, the compiler chooses the communication of linear maps.
        context_attention: how attention over a split sequence sees all keys, "ring" or "all_gather".
    """

    mesh: Mesh
    axes_of: Callable[[str], tuple[str, ...]]
    weight_axes_of: Callable[[str], tuple[str, ...]] | None = None
    gradient_axes_of: Callable[[str], tuple[str, ...]] | None = None
    context_attention: str = "ring"


_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar("constraint", default=None)
_splits: contextvars.ContextVar[Splits | None] = contextvars.ContextVar("splits", default=None)
_device: contextvars.ContextVar[jax.Device | None] = contextvars.ContextVar("device", default=None)


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


def splits_in_force() -> Splits | None:
    """The splits of the layout in force; None without one, or where the compiler is to choose all communication."""
    return _splits.get()


def split_of(dim: str) -> Split | None:
    """The mesh axes that split an activation's dim; None where it is whole."""
    splits = _splits.get()
    axes = splits.axes_of(dim) if splits else ()
    return Split(mesh=splits.mesh, axes=axes) if axes else None


def device_in_force() -> jax.Device:
    """A device like those that the model is traced for: of the layout in force, or the default one."""
    return _device.get() or jax.local_devices()[0]


@contextlib.contextmanager
def layout_in_force(
    constraint: Constraint, splits: Splits | None = None, device: jax.Device | None = None
) -> Iterator[None]:
    """Apply `constraint(x, dims)` at every `constrain` call traced inside the block; answer `split_of` by `splits`.

    `device` stands for all that the layout covers, which are of one kind.
    """
    tokens = _constraint.set(constraint), _splits.set(splits), _device.set(device)
    try:
        yield
    finally:
        _constraint.reset(tokens[0])
        _splits.reset(tokens[1])
        _device.reset(tokens[2])
