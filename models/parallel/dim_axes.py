"""Which mesh axes split each dim of an array as it is stored and as it is used; gather the one to get the other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from hetjax.models.dims import Dims
from hetjax.models.parallel.layout_in_force import Axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DimAxes:
    """The axes that split each dim of an array: as it is `stored`, and of the part that a device `uses`.

    Where the two differ, the axes that come last in `stored` are gathered for use, and a sum of parts is
    scattered over them. Methods with arrays run inside `jax.shard_map`.
    """

    stored: tuple[Axes, ...]
    used: tuple[Axes, ...]

    @property
    def spec(self) -> PartitionSpec:
        """The partition of the array as it is stored."""
        return PartitionSpec(*(axes or None for axes in self.stored))

    @property
    def gathered(self) -> list[tuple[int, Axes]]:
        """(dim, axes to gather or scatter it over) of each dim that is not used as it is stored."""
        pairs = enumerate(zip(self.stored, self.used, strict=True))
        return [(dim, stored[len(used) :]) for dim, (stored, used) in pairs if stored != used]

    def can_scatter(self, over: Axes) -> bool:
        """Return whether each stored part lies in one used part, so that a sum over `over` can be scattered to it."""
        nested = all(stored[: len(used)] == used for stored, used in zip(self.stored, self.used, strict=True))
        return nested and {*unique_axes(axes for _, axes in self.gathered)} <= {*over}

    def gather(self, x: Array) -> Array:
        """Return the part that a device uses, from the part that it stores."""
        for dim, axes in self.gathered:
            x = jax.lax.all_gather(x, axes, axis=dim, tiled=True)
        return x

    def sum(self, x: Array, over: Axes) -> Array:
        """Return the sum over `over`, stored; scattered over what is not used in parts, which `over` holds."""
        for dim, axes in self.gathered:
            x = jax.lax.psum_scatter(x, axes, scatter_dimension=dim, tiled=True)
        rest = tuple(axis for axis in over if axis not in unique_axes(axes for _, axes in self.gathered))
        return jax.lax.psum(x, rest) if rest else x


def weight_axes(axes_of: Callable[[str], Axes], names: Dims, used: tuple[Axes, ...]) -> DimAxes:
    """Return the axes of a weight with these dims; a dim that it stores whole is handed out in the parts used."""
    stored = tuple(axes_of(name) or axes for name, axes in zip(names, used, strict=True))
    return DimAxes(stored=stored, used=used)


def gradient_axes(stored: tuple[Axes, ...], used: tuple[Axes, ...], over: Axes) -> DimAxes:
    """Return the axes of a gradient, a sum over `over`, scattered as far as can be to the optimizer's parts, `stored`.

    What is split by an axis that the sum does not run over is left to the compiler, which moves nothing for it.
    """
    reached = []
    for all_of, own in zip(stored, used, strict=True):
        further = all_of[len(own) :] if all_of[: len(own)] == own else ()
        reached.append((*own, *itertools.takewhile(lambda axis: axis in over, further)))
    return DimAxes(stored=tuple(reached), used=used)


def common_prefix(a: Axes, b: Axes) -> Axes:
    """Return the axes that both begin with."""
    count = next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    return a[:count]


def unique_axes(each: Iterable[Axes]) -> Axes:
    """Return all axes of several dims, each once, in order."""
    return tuple(dict.fromkeys(axis for axes in each for axis in axes))
