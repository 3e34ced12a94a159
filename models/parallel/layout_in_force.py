"""The layout that a model is traced under: which mesh axes split each dim, for parts that communicate by themselves.

Whoever runs a model puts a layout in force around the trace. Layers never ask for it: the functions of this package do,
and run by `jax.shard_map` over the axes that they find.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import types
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import Mesh

from hetjax.models.dims import Constraint, Dims, constraint_in_force

Axes = tuple[str, ...]
"""Mesh axes that together split one dim."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How a dim is split: over `axes` of `mesh`, into `degree` parts."""

    mesh: Mesh
    axes: Axes

    @property
    def degree(self) -> int:
        """Number of parts."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """What parts that communicate by themselves ask of a layout.

    Attributes:
        mesh: the mesh that the model runs on.
        axes_of: the axes that an activation's dim rides on, those of degree 1 left out.
        weight_axes_of: the axes that a dim rides on in the weights that programs are given; without, the compiler
            chooses the communication of linear maps.
        gradient_axes_of: the axes of each dim of a weight's gradient, from the weight's dims and shape.
        context_attention: how attention over a split sequence sees all keys, "ring" or "all_gather".
    """

    mesh: Mesh
    axes_of: Callable[[str], Axes]
    weight_axes_of: Callable[[str], Axes] | None = None
    gradient_axes_of: Callable[[Dims, Sequence[int]], tuple[Axes, ...]] | None = None
    context_attention: str = "ring"


_splits: contextvars.ContextVar[Splits | None] = contextvars.ContextVar("splits", default=None)
_device: contextvars.ContextVar[jax.Device | None] = contextvars.ContextVar("device", default=None)
_replaced: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("replaced", default=frozenset())

NO_DEVICE = types.SimpleNamespace(platform="none")
"""A device of no kind, for tracing alone: all products are asked for in the open, so that they can be counted."""


def splits_in_force() -> Splits | None:
    """Return the splits of the layout in force; None without one, or where the compiler chooses all communication."""
    return _splits.get()


def split_of(dim: str) -> Split | None:
    """Return the mesh axes that split an activation's dim; None where it is whole."""
    splits = _splits.get()
    axes = splits.axes_of(dim) if splits else ()
    return Split(mesh=splits.mesh, axes=axes) if axes else None


def device_in_force() -> jax.Device:
    """Return a device like those that the model is traced for: of the layout in force, or the default one."""
    return _device.get() or jax.local_devices()[0]


def is_replaced(kernel: str) -> bool:
    """Return whether a kernel, by its name in `hetjax.models.kernels.checks`, gives way to the portable path."""
    return kernel in _replaced.get()


@contextlib.contextmanager
def layout_in_force(
    constraint: Constraint,
    splits: Splits | None = None,
    device: jax.Device | None = None,
    replaced_kernels: frozenset[str] = frozenset(),
) -> Iterator[None]:
    """Apply `constraint(x, dims)` at every `constrain` call traced inside the block; answer `split_of` by `splits`.

    `device` stands for all that the layout covers, which are of one kind. The kernels of `replaced_kernels` are not
    used.
    """
    tokens = _splits.set(splits), _device.set(device), _replaced.set(replaced_kernels)
    try:
        with constraint_in_force(constraint):
            yield
    finally:
        _splits.reset(tokens[0])
        _device.reset(tokens[1])
        _replaced.reset(tokens[2])
