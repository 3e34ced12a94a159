"""Splits a backward into two functions: gradients of inputs now, gradients of weights later.

The two share most of their work: both need the gradient of each layer's output. So the backward is traced to
equations, and each equation that a gradient of inputs depends on goes into the first part; the rest, such as the
product of a layer's input with the gradient of its output, goes into the second. A loop over layers becomes two
loops. What the second part reads of the first is handed on: the *crossing* values. No equation is in both, so that
together they compute what the whole backward computes.

Written against `jax.extend.core`, the public names for what `jax.make_jaxpr` returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax

from hetjax.compilation.compiled_program import ArrayTree
from hetjax.programs.split_backward import Equations, Values, equations_of, split
from hetjax.programs.split_backward.additions import add_to
from hetjax.programs.split_backward.equations import new_number


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LaterPiece:
    """A piece of the second part, independent of the others: all that they share is what the first part made.

    Attributes:
        outputs: gradients of weights that it makes, by their place among all, flattened.
        reads: arguments of the first part that it takes, by their place among all, flattened.
        crossing: crossing values that it takes, by their place.
    """

    outputs: tuple[int, ...]
    reads: tuple[int, ...]
    crossing: tuple[int, ...]
    _equations: Equations
    _reads: tuple[int, ...]
    _crossing: tuple[int, ...]
    _outputs: tuple[int, ...]

    def __call__(
        self, read: Sequence[jax.Array], crossing: Sequence[jax.Array], sums: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """Return sums with the gradients at `outputs` added, from the arguments at `reads` and values at `crossing`."""
        totals = [new_number() for _ in sums]
        added = list(zip(self._outputs, totals, (total.ndim for total in sums), strict=True))
        equations, results = add_to(self._equations, added)
        values: Values = dict(zip((*self._reads, *self._crossing, *totals), (*read, *crossing, *sums), strict=True))
        equations.run(values)
        return tuple(values[number] for number in results)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitBackward:
    """Both parts of a backward, as functions of flat tuples of arrays; to be traced.

    The numbers are those of the values of `_first` and `_later`: `_inputs` of all arguments, `_crossing` of what is
    handed on, `_first_outputs` (with their tree) and `_later_outputs` of the gradients of inputs and of weights.
    """

    _inputs: tuple[int, ...]
    _first: Equations
    _later: Equations
    _crossing: tuple[int, ...]
    _first_outputs: tuple[tuple[int, ...], jax.tree_util.PyTreeDef]
    _later_outputs: tuple[int, ...]

    def first(self, *arguments: ArrayTree) -> tuple[ArrayTree, tuple[jax.Array, ...]]:
        """Return (gradients of inputs, crossing values), from all arguments of the backward."""
        values: Values = dict(zip(self._inputs, jax.tree.leaves(arguments), strict=True))
        self._first.run(values)
        numbers, tree = self._first_outputs
        return tree.unflatten([values[number] for number in numbers]), tuple(values[i] for i in self._crossing)

    @property
    def later(self) -> LaterPiece:
        """All gradients of weights, in one piece."""
        return self._piece(range(len(self._later_outputs)))

    @property
    def later_apart(self) -> tuple[LaterPiece, ...]:
        """All gradients of weights, in as many pieces as have nothing to do with each other.

        Such as the weights of all layers, which one loop makes, and the embedding's.
        """
        needs = [self._later.makes_for(number) for number in self._later_outputs]
        groups: list[tuple[list[int], set[int]]] = []
        for place, made in enumerate(needs):
            # What the first part made already, with no equation left, goes along in one piece.
            made = made or {-1}
            joined = [group for group in groups if group[1] & made]
            groups = [group for group in groups if group not in joined]
            places = sorted([place, *(each for group in joined for each in group[0])])
            groups.append((places, made.union(*(group[1] for group in joined))))
        return tuple(self._piece(places) for places, _ in sorted(groups, key=lambda group: group[0]))

    def _piece(self, places: Iterable[int]) -> LaterPiece:
        places = tuple(places)
        outputs = tuple(self._later_outputs[place] for place in places)
        equations = self._later.only(outputs)
        needed = equations.needs(outputs)
        reads = [(place, number) for place, number in enumerate(self._inputs) if number in needed]
        crossing = [(place, number) for place, number in enumerate(self._crossing) if number in needed]
        return LaterPiece(
            outputs=places,
            reads=tuple(place for place, _ in reads),
            crossing=tuple(place for place, _ in crossing),
            _equations=equations,
            _reads=tuple(number for _, number in reads),
            _crossing=tuple(number for _, number in crossing),
            _outputs=outputs,
        )


def split_backward(backward: Callable[..., tuple[ArrayTree, ArrayTree]], *arguments: ArrayTree) -> SplitBackward:
    """Split `backward(*arguments) -> (gradients of weights, gradients of inputs)`, traced for these shapes.

    Each argument and result is a pytree, of `jax.ShapeDtypeStruct`s or arrays.
    """
    traced, shapes = jax.make_jaxpr(backward, return_shape=True)(*arguments)
    equations, inputs, outputs = equations_of(traced)
    of_weights, of_inputs = shapes
    count = len(jax.tree.leaves(of_weights))
    later_outputs, first_outputs = outputs[:count], outputs[count:]
    first, later, crossing = split(equations, first_outputs, later_outputs)
    return SplitBackward(
        _inputs=inputs,
        _first=first,
        _later=later,
        _crossing=tuple(crossing),
        _first_outputs=(first_outputs, jax.tree.structure(of_inputs)),
        _later_outputs=later_outputs,
    )
