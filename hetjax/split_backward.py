"""A backward cut in two programs: the gradients of inputs now, those of weights later.

The two share most of their work: both need the gradient of what each layer puts out. So the backward is
traced to equations, and each equation that a gradient of inputs depends on goes into the first part; the
rest, such as the product of a layer's input with the gradient of its output, goes into the second. A loop
over layers becomes two loops. What the second part reads of the first is handed on: the *crossing* values.
No equation is in both, so that together they compute what the whole backward computes.

Written against `jax.extend.core`, the public names for what `jax.make_jaxpr` returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from hetjax.equations import Equations, Values, cut, equations_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitBackward:
    """Both parts of a backward, as functions of flat tuples of arrays; to be traced.

    Attributes:
        reads: positions of those of the first part's arguments that the second reads, too.
    """

    inputs: tuple[int, ...]
    reads: tuple[int, ...]
    _first: Equations
    _later: Equations
    _crossing: tuple[int, ...]
    _first_outputs: tuple[tuple[int, ...], Any]
    _later_outputs: tuple[tuple[int, ...], Any]

    def first(self, *arguments: Any) -> tuple[Any, tuple[jax.Array, ...]]:
        """(gradients of inputs, crossing values), from all arguments of the backward."""
        values: Values = dict(zip(self.inputs, jax.tree.leaves(arguments), strict=True))
        self._first.run(values)
        numbers, tree = self._first_outputs
        return tree.unflatten([values[number] for number in numbers]), tuple(values[i] for i in self._crossing)

    def later(self, read: tuple[jax.Array, ...], crossing: tuple[jax.Array, ...]) -> Any:
        """The gradients of weights, from the arguments at `reads` and the crossing values."""
        values: Values = dict(zip((self.inputs[position] for position in self.reads), read, strict=True))
        values.update(zip(self._crossing, crossing, strict=True))
        self._later.run(values)
        numbers, tree = self._later_outputs
        return tree.unflatten([values[number] for number in numbers])


def split_backward(backward: Callable[..., tuple[Any, Any]], *arguments: Any) -> SplitBackward:
    """Cut `backward(*arguments) -> (gradients of weights, gradients of inputs)`, traced for these shapes."""
    traced, shapes = jax.make_jaxpr(backward, return_shape=True)(*arguments)
    equations, inputs, outputs = equations_of(traced)
    of_weights, of_inputs = shapes
    count = len(jax.tree.leaves(of_weights))
    later_outputs, first_outputs = outputs[:count], outputs[count:]
    first, later, crossing = cut(equations, first_outputs, later_outputs)
    needed = later.needs(later_outputs)
    return SplitBackward(
        inputs=inputs,
        reads=tuple(position for position, number in enumerate(inputs) if number in needed),
        _first=first,
        _later=later,
        _crossing=crossing,
        _first_outputs=(first_outputs, jax.tree.structure(of_inputs)),
        _later_outputs=(later_outputs, jax.tree.structure(of_weights)),
    )
