"""Which part of an array a device stores and which it uses, and how one becomes the other inside `jax.shard_map`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from hetjax.models.dims import Dims

Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """The axes that split each dim of an array: as it is `stored`, and of the part that a device `uses`.

    Where the two differ, the axes that come last in `stored` are gathered for use, and a sum of parts is
    scattered over them.
    """

    stored: tuple[Axes, ...]
    used: tuple[Axes, ...]

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(*(axes or None for axes in self.stored))

    @property
    def moves(self) -> list[tuple[int, Axes]]:
        """(dim, axes to gather or scatter it over)."""
        pairs = enumerate(zip(self.stored, self.used, strict=True))
        return [(dim, stored[len(used) :]) for dim, (stored, used) in pairs if stored != used]

    def is_summed_over(self, over: Axes) -> bool:
        """Whether every part stored lies in one part used, and parts of a sum over `over` can be scattered to it."""
        nested = all(stored[: len(used)] == used for stored, used in zip(self.stored, self.used, strict=True))
        return nested and {*flat(axes for _, axes in self.moves)} <= {*over}

    def gather(self, x: Array) -> Array:
        for dim, axes in self.moves:
            x = jax.lax.all_gather(x, axes, axis=dim, tiled=True)
        return x

    def sum(self, x: Array, over: Axes) -> Array:
        """The sum over `over`, stored; scattered over what is not used in parts, which `over` holds."""
        for dim, axes in self.moves:
            x = jax.lax.psum_scatter(x, axes, scatter_dimension=dim, tiled=True)
        rest = tuple(axis for axis in over if axis not in flat(axes for _, axes in self.moves))
        return jax.lax.psum(x, rest) if rest else x


def held_in(axes_of: Callable[[str], Axes], names: Dims, used: tuple[Axes, ...]) -> Held:
    """A weight with these dims, by the axes of each; a dim that it stores whole is handed out in the parts used."""
    stored = tuple(axes_of(name) or axes for name, axes in zip(names, used, strict=True))
    return Held(stored=stored, used=used)


def common(a: Axes, b: Axes) -> Axes:
    """The axes that both begin with."""
    count = next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    return a[:count]


def flat(each: Iterable[Axes]) -> Axes:
    """All axes, each once."""
    return tuple(dict.fromkeys(axis for axes in each for axis in axes))
