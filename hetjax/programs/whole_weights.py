"""Gathers weights that XLA's partitioner would multiply wrongly.

XLA's SPMD partitioner (jax 0.10.2 and 0.12, any backend) computes `x @ w` wrongly, without a word, where

- the contracted dim is split over one axis, in x and w, and so are the last dims of w and of the result: that of w over
  an axis of the batch, that of the result over the first, and both axes have the same degree;
- the batch is also split over an axis outside of that of w, along which w is copied.

So it is with x [batch over data and fsdp, tensor], w [tensor, fsdp], the result laid out as x, and fsdp = tensor: it
orders the samples by (fsdp, data) for the product and leaves them so. In a program with the plain products of
somebody's module the partitioner may come to such layouts by itself, in the backward above all. Gathered over the axes
of the batch before, as with `zero=1`, such a weight is multiplied rightly. The linear maps of `hetjax.models.parallel`
communicate by themselves and are left alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.sharding import NamedSharding, PartitionSpec

from hetjax.compilation.compiled_program import ArrayTree
from hetjax.meshes import BATCH_AXES
from hetjax.stages.flat_state import Arrays
from hetjax.stages.stage import Stage

_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general", "ragged_dot")
# What runs on each device by itself, and what looks rows up: their results are no weights.
_ENDS = ("shard_map", "pallas_call", "gather")
_LOOPS = ("scan", "while")


class WholeWeights:
    """Gathers the weights of a stage that a function may multiply wrongly as they are.

    Args:
        stage: the stage.
        function: its first argument are weights by path; it is traced with `arguments`, shapes, where any is at risk.

    Attributes:
        shardings: what is gathered, by path, and to what.
    """

    def __init__(self, stage: Stage, function: Callable[..., ArrayTree], *arguments: ArrayTree):
        split = {path: aval.sharding for path, aval in stage.compute_params.items()}
        risky = {path for path, sharding in split.items() if _at_risk(sharding)}
        self.shardings: dict[str, NamedSharding] = {}
        if risky:
            traced = jax.make_jaxpr(function)(*arguments)
            # Weights come first, in the order of a dict's leaves.
            labels = [frozenset({path} & risky) for path in sorted(split)]
            rest = [frozenset()] * (len(traced.jaxpr.invars) - len(labels))
            multiplied, _ = _follow(traced, [*labels, *rest])
            self.shardings = {path: _without_batch_axes(split[path]) for path in sorted(multiplied)}

    def gather(self, params: Arrays) -> Arrays:
        """Return the weights to multiply with; to be traced."""
        constrain = jax.lax.with_sharding_constraint
        return {**params, **{path: constrain(params[path], to) for path, to in self.shardings.items()}}

    def before(self, function: Callable[..., ArrayTree]) -> Callable[..., ArrayTree]:
        """Return a function of weights and more, called with the weights gathered."""
        return lambda params, *others: function(self.gather(params), *others)


def _at_risk(sharding: NamedSharding) -> bool:
    """Whether two dims are split into as many parts, and the batch over an axis outside of one that it shares."""
    degree_of, entries = sharding.mesh.shape, [_axes(entry) for entry in sharding.spec]
    degrees = [_degree(degree_of, axes) for axes in entries if _degree(degree_of, axes) > 1]
    split = [axis for axis in BATCH_AXES if degree_of[axis] > 1]
    shared = [any(axis in axes for axes in entries) for axis in split]
    # An axis that the weight is copied along comes before one that splits it.
    copied_outside = any(not outer and inner for outer, inner in itertools.combinations(shared, 2))
    return copied_outside and len({*degrees}) < len(degrees)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _degree(degree_of: Mapping[str, int], axes: Sequence[str]) -> int:
    return math.prod(degree_of[axis] for axis in axes)


def _without_batch_axes(sharding: NamedSharding) -> NamedSharding:
    entries = [tuple(axis for axis in _axes(entry) if axis not in BATCH_AXES) or None for entry in sharding.spec]
    return NamedSharding(sharding.mesh, PartitionSpec(*entries))


# ── which weights products read ──────────────────────────────────────────────────────────────────

Labels = frozenset[str]
"""Paths of the weights that a value may be, or be part of."""


def _follow(traced: ClosedJaxpr | Jaxpr, inputs: Sequence[Labels]) -> tuple[Labels, list[Labels]]:
    """Return (the weights that products outside of `shard_map` read, the weights in each output)."""
    jaxpr = getattr(traced, "jaxpr", traced)
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    multiplied: Labels = frozenset()

    def labels(atom) -> Labels:
        return frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())

    for eqn in jaxpr.eqns:
        found, results = _follow_equation(eqn, [labels(atom) for atom in eqn.invars])
        multiplied |= found
        known.update(zip(eqn.outvars, results, strict=True))
    return multiplied, [labels(atom) for atom in jaxpr.outvars]


def _follow_equation(eqn: JaxprEqn, read: Sequence[Labels]) -> tuple[Labels, list[Labels]]:
    """The same of one equation; what it may pass on counts as in all its results, unless a call says more."""
    name, union = eqn.primitive.name, frozenset().union(*read)
    if name in _PRODUCTS:
        return union, [frozenset()] * len(eqn.outvars)
    if name in _ENDS or not union:
        return frozenset(), [frozenset()] * len(eqn.outvars)
    inside = [_follow_inside(function, read) for function in _functions(eqn)]
    multiplied = frozenset().union(*(found for found, _ in inside))
    if name not in _LOOPS and inside and all(len(made) == len(eqn.outvars) for _, made in inside):
        return multiplied, [frozenset().union(*each) for each in zip(*(made for _, made in inside), strict=True)]
    return multiplied, [union] * len(eqn.outvars)


def _functions(eqn: JaxprEqn) -> list[ClosedJaxpr | Jaxpr]:
    values = [v if isinstance(v, tuple | list) else (v,) for v in eqn.params.values()]
    return [value for value in itertools.chain(*values) if isinstance(value, ClosedJaxpr | Jaxpr)]


def _follow_inside(function: ClosedJaxpr | Jaxpr, read: Sequence[Labels]) -> tuple[Labels, list[Labels]]:
    """`_follow` a function inside of an equation; its inputs are the last of what that reads, in order, or unknown."""
    count = len(getattr(function, "jaxpr", function).invars)
    given = list(read[len(read) - count :]) if count <= len(read) else [frozenset().union(*read)] * count
    return _follow(function, given)
