"""Add gradients of weights to sums inside of the loops that make them, a layer at a time.

The backward of scanned layers stacks the gradients of all layers' weights, in the dtype of the weights, to be added to
the sums of earlier microbatches afterwards: an array as large as the weights. Here a loop carries the sums instead, and
each iteration adds what it made to its own part, in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from hetjax.compilation.compiled_program import ArrayTree
from hetjax.programs.split_backward.equations import Equations, PlainEquation, Values, new_number
from hetjax.programs.split_backward.jaxpr import equations_of
from hetjax.programs.split_backward.scan import Carry, Scan, ScanValue
from hetjax.stages.flat_state import Arrays, Shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addition:
    """Adds an array to a sum, or to one part of it.

    Attributes:
        total, part, result: numbers of the sum, of what is added, and of the sum after it.
        order: what is added is transposed to this order of its dims.
        indices, dims: numbers of the iterations of the loops around it, and the dims of the sum that they count.
    """

    total: int
    part: int
    result: int
    order: tuple[int, ...]
    indices: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of the sum, of what is added, and of the iterations."""
        return (self.total, self.part, *self.indices)

    @property
    def makes(self) -> tuple[int, ...]:
        """The number of the sum after it."""
        return (self.result,)

    def run(self, values: Values) -> None:
        """Add, in the dtype of the sum."""
        total = values[self.total]
        part = jax.lax.transpose(values[self.part], self.order).astype(total.dtype)
        at = dict(zip(self.dims, (values[index] for index in self.indices), strict=True))
        starts = [at.get(dim, np.int32(0)) for dim in range(total.ndim)]
        sizes = [1 if dim in at else size for dim, size in enumerate(total.shape)]
        before = jax.lax.dynamic_slice(total, starts, sizes) if at else total
        after = before + part.reshape(sizes)
        values[self.result] = jax.lax.dynamic_update_slice(total, after, starts) if at else after

    def trimmed(self, made: set[int]) -> Addition:
        """Return itself: it makes one thing."""
        return self

    def split(self, now: set[int], then: set[int]) -> tuple[Addition, None]:
        """Return itself, whole, for the first part."""
        return self, None


def add_to(
    equations: Equations, sums: Sequence[tuple[int, int, int]], others: Sequence[int] = ()
) -> tuple[Equations, list[int]]:
    """Return (equations that add outputs to sums, the numbers of the sums after it).

    Args:
        sums: the numbers of an output and of the sum that it is added to, and how many dims they have.
        others: outputs that stay.
    """
    results = [new_number() for _ in sums]
    for place, (output, total, dims) in enumerate(sums):
        addition = Addition(total=total, part=output, result=results[place], order=tuple(range(dims)))
        # Those before it are added by now.
        equations = _with_addition(equations, addition, {*others, *(output for output, *_ in sums[place + 1 :])})
    return equations.only([*results, *others]), results


def _with_addition(equations: Equations, addition: Addition, kept: set[int]) -> Equations:
    """The equations and an addition, as deep inside of loops as its part is made, if nothing else reads that.

    `kept` are outputs of the equations, beside what the addition makes.
    """
    part = addition.part
    readers = [equation for equation in equations.ordered if part in equation.reads]
    maker = next((i for i, equation in enumerate(equations.ordered) if part in equation.makes), None)
    if maker is not None and part not in kept and not readers:
        match equations.ordered[maker]:
            case PlainEquation(equation=eqn, reads=(source,)) if eqn.primitive.name == "transpose":
                order = tuple(eqn.params["permutation"][dim] for dim in addition.order)
                rest = equations.ordered[:maker] + equations.ordered[maker + 1 :]
                moved = dataclasses.replace(addition, part=source, order=order)
                return _with_addition(dataclasses.replace(equations, ordered=rest), moved, kept)
            case Scan() as scan if any(value.outer == part for value in scan.stacked):
                return _inside(equations, maker, scan, addition)
    return dataclasses.replace(equations, ordered=(*equations.ordered, addition))


def _inside(equations: Equations, place: int, scan: Scan, addition: Addition) -> Equations:
    """The equations with a scan that carries the sum, and adds to it what it stacked before."""
    inner = next(value.inner for value in scan.stacked if value.outer == addition.part)
    stacked = tuple(value for value in scan.stacked if value.outer != addition.part)
    carry = Carry(start=addition.total, current=new_number(), following=new_number(), end=addition.result)
    around = tuple(ScanValue(index, new_number()) for index in addition.indices)
    constants, index = _with_index(equations.constants, scan)
    # The dims of the sum that no loop around this one counts, in order; of what is stacked, this one counts the first.
    left = [dim for dim in range(len(addition.order) + len(addition.dims)) if dim not in addition.dims]
    inside = Addition(
        total=carry.current,
        part=inner,
        result=carry.following,
        order=tuple(dim - 1 for dim in addition.order if dim != 0),
        indices=(*(value.inner for value in around), index.inner),
        dims=(*addition.dims, left[addition.order.index(0)]),
    )
    ends = {*(each.following for each in scan.carries), *(value.inner for value in stacked)}
    scan = dataclasses.replace(
        scan,
        body=_with_addition(scan.body, inside, ends),
        constants=(*scan.constants, *around),
        carries=(*scan.carries, carry),
        each=scan.each if index in scan.each else (*scan.each, index),
        stacked=stacked,
    )
    ordered = (*equations.ordered[:place], scan, *equations.ordered[place + 1 :])
    return Equations(ordered, constants)


def _with_index(constants: Values, scan: Scan) -> tuple[Values, ScanValue]:
    """(constants with the numbers of a scan's iterations, the value of which each iteration reads its own)."""
    numbers = np.arange(scan.length, dtype=np.int32)
    for value in scan.each:
        known = constants.get(value.outer)
        if isinstance(known, np.ndarray) and known.dtype == numbers.dtype and np.array_equal(known, numbers):
            return constants, value
    index = ScanValue(new_number(), new_number())
    return {**constants, index.outer: numbers}, index


def adding_backward(
    gradients: Callable[..., tuple[Arrays, ArrayTree]], arguments: Sequence[ArrayTree], sums: Shapes
) -> Callable[..., tuple[Arrays, ArrayTree]]:
    """Return `(*arguments, sums) -> (sums with the gradients of weights added, gradients of inputs)`; to be traced.

    Args:
        gradients: `(*arguments) -> (gradients of weights by path, gradients of inputs)`.
        arguments: shapes, each a pytree.
        sums: shapes of the sums, by path.
    """
    traced, (of_weights, of_inputs) = jax.make_jaxpr(gradients, return_shape=True)(*arguments)
    equations, inputs, outputs = equations_of(traced)
    paths = sorted(of_weights)
    totals = {path: new_number() for path in paths}
    added = [(output, totals[path], sums[path].ndim) for path, output in zip(paths, outputs, strict=False)]
    others = outputs[len(paths) :]
    equations, results = add_to(equations, added, others)

    def backward(*arguments: ArrayTree) -> tuple[Arrays, ArrayTree]:
        *read, before = arguments
        values: Values = dict(zip(inputs, jax.tree.leaves(read), strict=True))
        values.update({totals[path]: before[path] for path in paths})
        equations.run(values)
        after = {path: values[number] for path, number in zip(paths, results, strict=True)}
        return after, jax.tree.unflatten(jax.tree.structure(of_inputs), [values[number] for number in others])

    return backward
