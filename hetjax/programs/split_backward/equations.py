"""Lists of equations in order, and splitting them in two."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Var, jaxpr_as_fun

Values = dict[int, jax.Array | np.ndarray]
"""Arrays by number: every value of a traced function has one."""

_numbers = itertools.count()


def new_number() -> int:
    """Return a number that no value has."""
    return next(_numbers)


def scoped(scope: str) -> AbstractContextManager[object]:
    """Return a block whose operations are traced in a scope, so that compiled texts name it; "" is none."""
    return jax.named_scope(scope) if scope else nullcontext()


class Equation(Protocol):
    """Computes values from others: one equation of a jaxpr, perhaps with equations of its own in a body."""

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of the values that it reads."""

    @property
    def makes(self) -> tuple[int, ...]:
        """Numbers of the values that it makes."""

    def run(self, values: Values) -> None:
        """Add what it makes to `values`, which hold what it reads."""

    def trimmed(self, made: set[int]) -> Equation:
        """Return the part of it that is needed to make these."""

    def split(self, now: set[int], then: set[int]) -> tuple[Equation, Equation | None]:
        """Return (what makes `now`, and more where it is one thing; what makes the rest of `then`)."""


@dataclasses.dataclass(frozen=True)
class PlainEquation:
    """An equation that is never split.

    Attributes:
        equation: as JAX has it.
        variables: what it reads, each variable once.
        kept: the variables of those results that anything reads.
        reads, makes: the numbers of `variables` and of `kept`.
        scope: the scopes of the functions that it was taken out of.
    """

    equation: JaxprEqn
    variables: tuple[Var, ...]
    kept: tuple[Var, ...]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    scope: str

    def run(self, values: Values) -> None:
        """Evaluate it."""
        eqn = self.equation
        names = DebugInfo(eqn.primitive.name, "", ("",) * len(self.variables), ("",) * len(self.kept))
        alone = Jaxpr((), self.variables, self.kept, [eqn], eqn.effects, names)
        with scoped(self.scope):
            made = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(values[number] for number in self.reads))
        values.update(zip(self.makes, made, strict=True))

    def trimmed(self, made: set[int]) -> PlainEquation:
        """Return itself: it makes all or nothing."""
        return self

    def split(self, now: set[int], then: set[int]) -> tuple[PlainEquation, None]:
        """Return itself, whole, for the first part."""
        return self, None


@dataclasses.dataclass(frozen=True)
class Equations:
    """Equations in order, and the constant arrays that they read, by number."""

    ordered: tuple[Equation, ...]
    constants: Values

    def run(self, values: Values) -> None:
        """Add everything that they make to `values`, which hold what they read."""
        values.update(self.constants)
        for equation in self.ordered:
            equation.run(values)

    def needs(self, outputs: Iterable[int]) -> set[int]:
        """Return all numbers that these outputs depend on, themselves included."""
        needed = set(outputs)
        for equation in reversed(self.ordered):
            made = needed.intersection(equation.makes)
            if made:
                needed.update(equation.trimmed(made).reads)
        return needed

    def makes_for(self, output: int) -> set[int]:
        """Return those of the numbers that an output depends on, itself included, which an equation makes."""
        made = itertools.chain.from_iterable(equation.makes for equation in self.ordered)
        return self.needs((output,)).intersection(made)

    def only(self, outputs: Iterable[int]) -> Equations:
        """Return those that these outputs depend on."""
        needed, ordered = set(outputs), []
        for equation in reversed(self.ordered):
            made = needed.intersection(equation.makes)
            if made:
                ordered.append(equation.trimmed(made))
                needed.update(ordered[-1].reads)
        return Equations(tuple(reversed(ordered)), self.constants)


def split(equations: Equations, first: Iterable[int], later: Iterable[int]) -> tuple[Equations, Equations, list[int]]:
    """Return (what the outputs `first` need; the rest of what the outputs `later` need; numbers handed to the rest)."""
    needed, wanted = equations.needs(first), set(later)
    ahead: list[Equation] = []
    behind: list[Equation] = []
    for equation in reversed(equations.ordered):
        now = needed.intersection(equation.makes)
        then = wanted.intersection(equation.makes) - now
        rest: Equation | None = None
        if now and then:
            head, rest = equation.split(now, then)
            ahead.append(head)
        elif now:
            ahead.append(equation.trimmed(now))
        elif then:
            rest = equation.trimmed(then)
        if rest is not None:
            behind.append(rest)
            wanted.update(rest.reads)
    made = {number for equation in ahead for number in equation.makes}
    parts = (Equations(tuple(reversed(part)), equations.constants) for part in (ahead, behind))
    return *parts, sorted(wanted & made)
