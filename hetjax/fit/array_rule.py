"""How large the arrays of a stage's programs may be, by its weights and by the activations that its layers name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hetjax.compilation.hlo import MadeArrays, Shape, oversized
from hetjax.models.dims import CHOSEN, Dims
from hetjax.models.kernels.blocked_attention import LONGEST_BLOCK
from hetjax.models.parallel.layout_in_force import NO_DEVICE, layout_in_force
from hetjax.stages.flat_state import Shapes
from hetjax.stages.stage import Stage

_SEQUENCES = ("seq", "residual_seq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayLimits:
    """What no array of a program should exceed.

    Attributes:
        weight_bytes: of the largest weight's shard.
        activation_bytes: of the widest activation on a device: its tokens times the widest hidden width. Tokens of
            experts count as often as they are routed.
        sequence_lengths: lengths of sequences, whole and as a device holds them, that are longer than a block of
            attention: no array should have two of them.
        known: shapes of weights and activations, on a device and whole.
    """

    weight_bytes: int
    activation_bytes: int
    sequence_lengths: frozenset[int]
    known: tuple[Shape, ...]

    def broken_by(self, arrays: Iterable[MadeArrays]) -> list[tuple[MadeArrays, str]]:
        """Return the arrays that no program should make, each with the reason; none where no activation is named."""
        return oversized(arrays, **vars(self)) if self.activation_bytes else []


def joined(limits: Iterable[ArrayLimits]) -> ArrayLimits:
    """Return the limits of a program that several stages share, such as that of a boundary."""
    several = list(limits)
    return ArrayLimits(
        weight_bytes=max(each.weight_bytes for each in several),
        activation_bytes=max(each.activation_bytes for each in several),
        sequence_lengths=frozenset().union(*(each.sequence_lengths for each in several)),
        known=tuple(shape for each in several for shape in each.known),
    )


def array_limits(stage: Stage, inputs: Shapes) -> ArrayLimits:
    """Return the limits of a stage's programs, which take `inputs`.

    Activations are those whose dims the stage's layers name (`hetjax.models.dims.constrain`), and its inputs.
    """
    named = _named_activations(stage, inputs)
    weights = [*stage.params.values(), *stage.compute_params.values()]
    shards = [_on_device(weight) for weight in weights]
    given = [_on_device(each) for each in inputs.values() if jnp.issubdtype(each.dtype, jnp.floating)] if named else []
    widest = [each.bytes for each in (*named, *given)]
    lengths = frozenset(_lengths(stage, named))
    shapes = [shape for each in (*shards, *named) for shape in (each.shape, each.on_device)]
    # Scores of words, a chunk of tokens at a time.
    shapes += [(length, words) for length in lengths for words in _vocabulary(stage) if length != words]
    return ArrayLimits(
        weight_bytes=max((shard.bytes for shard in shards), default=0),
        activation_bytes=max([*widest, _routed_bytes(stage, named)], default=0),
        sequence_lengths=lengths,
        known=tuple(Shape("", dims) for dims in dict.fromkeys(shapes)),
    )


class _Placed(NamedTuple):
    """An array by its whole shape and by what a device holds of it, with the names of its dims where it has any."""

    shape: tuple[int, ...]
    on_device: tuple[int, ...]
    dtype: jnp.dtype
    dims: Dims = ()

    @property
    def bytes(self) -> int:
        return math.prod(self.on_device) * jnp.dtype(self.dtype).itemsize

    def size(self, *names: str) -> int:
        return math.prod(size for name, size in zip(self.dims, self.on_device, strict=True) if name in names)


def _named_activations(stage: Stage, inputs: Shapes) -> list[_Placed]:
    """Trace the forward as on one device, and return what its layers say of their activations."""
    found: dict[_Placed, None] = {}

    def record(x: jax.Array, dims: Dims) -> jax.Array:
        # Scores of all words are no hidden width.
        if "vocab" not in dims:
            degrees = [_degree(stage, dim) for dim in dims]
            parts = tuple(-(-size // degree) for size, degree in zip(x.shape, degrees, strict=True))
            found[_Placed(x.shape, parts, x.dtype, dims)] = None
        return x

    with layout_in_force(record, device=NO_DEVICE):
        jax.eval_shape(stage.call_whole, stage.compute_params, stage.buffers, inputs)
    return list(found)


def _degree(stage: Stage, dim: str | None) -> int:
    return math.prod(stage.mesh.shape[axis] for axis in stage.layout.activation_axes(dim or ""))


def _lengths(stage: Stage, named: Iterable[_Placed]) -> Iterator[int]:
    """Yield lengths of sequences; where `context` splits them also those of the two parts that a device holds."""
    parts = (1, 2) if _degree(stage, "seq") > 1 else (1,)
    for activation in named:
        for dim, whole, part in zip(activation.dims, activation.shape, activation.on_device, strict=True):
            if dim in _SEQUENCES:
                lengths = (whole, *(part // count for count in parts))
                yield from (length for length in lengths if length > LONGEST_BLOCK)


def _vocabulary(stage: Stage) -> set[int]:
    """Return how many words weights hold, whole and on a device."""
    dims_of = stage.skeleton.dims
    placed = [(dims_of[path], _on_device(each)) for path, each in stage.compute_params.items() if path in dims_of]
    return {
        size
        for dims, each in placed
        for shape in (each.shape, each.on_device)
        for dim, size in zip(dims, shape, strict=True)
        if dim == "vocab"
    }


def _routed_bytes(stage: Stage, named: Iterable[_Placed]) -> int:
    """Return the bytes of the tokens that experts take in all, as wide as the widest of what they read and hide."""
    routed = [activation.size("batch", "seq", CHOSEN) for activation in named if CHOSEN in activation.dims]
    dims_of = stage.skeleton.dims
    experts = [
        (dims_of[path], each) for path, each in stage.compute_params.items() if "experts" in dims_of.get(path, ())
    ]
    # Of what they hide a device has its part, of what they read all: `fsdp` splits weights alone.
    widths = [
        size // _degree(stage, dim) * each.dtype.itemsize
        for dims, each in experts
        for dim, size in zip(dims, each.shape, strict=True)
        if dim in ("embed", "mlp")
    ]
    return max(routed, default=0) * max(widths, default=0)


def _on_device(each: jax.ShapeDtypeStruct) -> _Placed:
    return _Placed(each.shape, each.sharding.shard_shape(each.shape), each.dtype)
