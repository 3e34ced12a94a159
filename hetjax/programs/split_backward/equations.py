"""Equations in order, and a cut through them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, Protocol

from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, jaxpr_as_fun

Values = dict[int, Any]
"""Arrays by number: every value of a traced function has one."""

_numbers = itertools.count()


def new_number() -> int:
    """A number that no value has."""
    return next(_numbers)


class Step(Protocol):
    """What makes values of others: an equation, or several with a body of their own."""

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of what it reads."""

    @property
    def makes(self) -> tuple[int, ...]:
        """Numbers of what it makes."""

    def run(self, values: Values) -> None:
        """Add what it makes to `values`, which hold what it reads."""

    def trimmed(self, made: set[int]) -> Step:
        """What of it is needed to make these."""

    def cut(self, now: set[int], then: set[int]) -> tuple[Step, Step | None]:
        """(what makes `now`, and more where it is one thing; what makes the rest of `then`)."""


@dataclasses.dataclass(frozen=True)
class Equation:
    """One equation, what it reads (each variable once), and the numbers of what it reads and makes."""

    equation: JaxprEqn
    variables: tuple[Any, ...]
    kept: tuple[Any, ...]
    reads: tuple[int, ...]
    makes: tuple[int, ...]

    def run(self, values: Values) -> None:
        eqn = self.equation
        names = DebugInfo(eqn.primitive.name, "", ("",) * len(self.variables), ("",) * len(self.kept))
        alone = Jaxpr((), self.variables, self.kept, [eqn], eqn.effects, names)
        made = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(values[number] for number in self.reads))
        values.update(zip(self.makes, made, strict=True))

    def trimmed(self, made: set[int]) -> Equation:
        return self

    def cut(self, now: set[int], then: set[int]) -> tuple[Equation, None]:
        return self, None


@dataclasses.dataclass(frozen=True)
class Equations:
    """Steps in order, and the arrays that they have of their own, by number."""

    steps: tuple[Step, ...]
    constants: Values

    def run(self, values: Values) -> None:
        """Add everything that they make to `values`, which hold what they read."""
        values.update(self.constants)
        for step in self.steps:
            step.run(values)

    def needs(self, outputs: Iterable[int]) -> set[int]:
        """All numbers that these outputs depend on, themselves included."""
        needed = set(outputs)
        for step in reversed(self.steps):
            made = needed.intersection(step.makes)
            if made:
                needed.update(step.trimmed(made).reads)
        return needed

    def makes_for(self, output: int) -> set[int]:
        """Those of the numbers that an output depends on, itself included, which a step makes."""
        return self.needs((output,)).intersection(number for step in self.steps for number in step.makes)

    def only(self, outputs: Iterable[int]) -> Equations:
        """Those that these outputs depend on."""
        needed, steps = set(outputs), []
        for step in reversed(self.steps):
            made = needed.intersection(step.makes)
            if made:
                steps.append(step.trimmed(made))
                needed.update(steps[-1].reads)
        return Equations(tuple(reversed(steps)), self.constants)


def cut(equations: Equations, first: Iterable[int], later: Iterable[int]) -> tuple[Equations, Equations, list[int]]:
    """(what the outputs `first` need; the rest of what the outputs `later` need; numbers handed on to the rest)."""
    needed, wanted = equations.needs(first), set(later)
    ahead: list[Step] = []
    behind: list[Step] = []
    for step in reversed(equations.steps):
        now = needed.intersection(step.makes)
        then = wanted.intersection(step.makes) - now
        rest: Step | None = None
        if now and then:
            head, rest = step.cut(now, then)
            ahead.append(head)
        elif now:
            ahead.append(step.trimmed(now))
        elif then:
            rest = step.trimmed(then)
        if rest is not None:
            behind.append(rest)
            wanted.update(rest.reads)
    made = {number for step in ahead for number in step.makes}
    parts = (Equations(tuple(reversed(steps)), equations.constants) for steps in (ahead, behind))
    return *parts, sorted(wanted & made)
