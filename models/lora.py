"""Train low-rank maps beside the frozen linear maps of a module, and add them to its kernels once they are trained."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models.errors import ModelError
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.low_rank import LowRank

Given = TypeVar("Given", bound=nnx.Module | Callable[[nnx.Rngs], nnx.Module])
"""A module, or what builds one."""

Matrix = TypeVar("Matrix", np.ndarray, jax.Array)

FROZEN = "frozen"
"""The key of a variable's metadata that says it does not train."""

_VOCABULARY = "vocab"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank maps beside the linear maps of a module, which alone train.

    The sum x W + (alpha / rank) x A B is computed, W frozen (Hu et al. 2021).

    Args:
        layers: Which linear maps, by the end of their path in the module, such as query, attention.* or
            layers.block.mlp.up; * stands for any text. The head over a vocabulary is none of them.
        rank: Columns of A and rows of B.
        alpha: Factor on what is added, times rank.
    """

    layers: list[str] = dataclasses.field(default_factory=lambda: ["*"])
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self):
        if self.rank < 1:
            raise ModelError(f"LoraConfig: rank = {self.rank} must be 1 or more")
        if not self.alpha > 0:
            raise ModelError(f"LoraConfig: alpha = {self.alpha} must be above 0")
        if isinstance(self.layers, str) or not self.layers:
            raise ModelError(f"LoraConfig: layers = {self.layers!r}; give a list of paths, such as [query, value]")

    @property
    def scale(self) -> float:
        """The factor on what the low-rank maps give."""
        return self.alpha / self.rank


def with_lora(module: Given, config: LoraConfig) -> Given:
    """Return a module, or a builder of one, with low-rank maps; all its other weights are frozen.

    The module given stays as it is. A builder's first weights are those that it had without; the low-rank maps are made
    from the same keys, and of a module that has weights from key 0. Works on `hetjax.models.parts.linear.Linear`.

    Raises ModelError where a pattern names no linear map, or only one over a vocabulary.
    """
    if not isinstance(module, nnx.Module):
        return lambda rngs: _add(module(rngs), config, rngs)
    return _add(nnx.merge(*nnx.split(module), copy=True), config, nnx.Rngs(0))


def merge_lora(module: nnx.Module) -> nnx.Module:
    """Return a module without low-rank maps, each added to the kernel beside it, in the kernel's dtype; all trains."""
    merged = nnx.merge(*nnx.split(module), copy=True)
    for _, linear in linear_maps(merged):
        if linear.lora is not None:
            kernel, lora = linear.kernel.get_value(), linear.lora
            added = low_rank_product(lora.a.kernel.get_value(), lora.b.kernel.get_value(), len(linear.ins), lora.scale)
            linear.kernel.set_value((kernel + added).astype(kernel.dtype))
            linear.lora = None
    for _, variable in nnx.to_flat_state(nnx.state(merged)):
        variable.set_metadata(**{FROZEN: False})
    return merged


def low_rank_product(a: Matrix, b: Matrix, ins: int, scale: float) -> Matrix:
    """Return scale * a b, [*layers, *ins, *outs], from a [*layers, *ins, R] and b [*layers, R, *outs].

    `ins` is how many dims those of ins are. Computed in float32 at least, by NumPy or by JAX as the arrays are.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)
    layers, of_ins, of_outs = a.shape[: -1 - ins], a.shape[-1 - ins : -1], b.shape[a.ndim - ins :]
    left = a.astype(wide).reshape(*layers, -1, a.shape[-1])
    right = b.astype(wide).reshape(*layers, b.shape[len(layers)], -1)
    return (scale * (left @ right)).reshape(*layers, *of_ins, *of_outs)


def linear_maps(module: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """Yield (path, map) of each linear map of a module, those inside of low-rank maps aside."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, Linear) and "lora" not in path:
            yield ".".join(map(str, path)), node


def _add(module: nnx.Module, config: LoraConfig, rngs: nnx.Rngs) -> nnx.Module:
    maps = dict(linear_maps(module))
    chosen = {path for pattern in config.layers for path in _named(pattern, maps, type(module).__name__)}
    for _, variable in nnx.to_flat_state(nnx.state(module)):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(**{FROZEN: True})
    for path in sorted(chosen):
        maps[path].lora = nnx.data(LowRank(maps[path], rank=config.rank, scale=config.scale, rngs=rngs))
    return module


def _named(pattern: str, maps: dict[str, Linear], kind: str) -> list[str]:
    matches = [path for path in maps if any(fnmatch.fnmatchcase(path, each) for each in (pattern, f"*.{pattern}"))]
    found = [path for path in matches if _VOCABULARY not in maps[path].outs]
    if not found:
        why = "only the head over a vocabulary" if matches else "no linear map"
        raise ModelError(
            f"LoraConfig: layers names '{pattern}', which is {why} of {kind}; its linear maps are "
            f"{', '.join(path for path, each in maps.items() if _VOCABULARY not in each.outs) or 'none'}"
        )
    return found
