"""A traced function as numbered equations, which can be cut in two and run.

Calls that only group equations are taken apart, so that a cut can go through them; a loop (`jax.lax.scan`)
is cut into two loops. Everything else, such as a `shard_map`, is one equation and goes to one side.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

Values = dict[int, Any]
"""Arrays by number: every value of a traced function has one."""

# What `jax.checkpoint` guards against, merging with the work of the forward, cannot happen in another program.
_GROUPS = ("jit", "pjit", "closed_call", "remat2", "remat", "checkpoint")

_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Equation:
    """One equation, and the numbers of what it reads and makes."""

    equation: JaxprEqn
    reads: tuple[int, ...]
    makes: tuple[int, ...]

    def run(self, values: Values) -> None:
        """Add what it makes to `values`."""
        eqn = self.equation
        variables = _variables(eqn)
        kept = [i for i, variable in enumerate(eqn.outvars) if type(variable).__name__ != "DropVar"]
        names = DebugInfo(eqn.primitive.name, "", ("",) * len(variables), ("",) * len(kept))
        alone = Jaxpr((), variables, [eqn.outvars[i] for i in kept], [eqn], eqn.effects, names)
        made = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*(values[number] for number in self.reads))
        values.update(zip((self.makes[i] for i in kept), made, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """A scan.

    Attributes:
        body: its equations.
        constants: (number outside, number in the body) of what every turn reads.
        carries: (start outside, number in the body, number of its next value, end outside).
        each: (stacked array outside, number in the body) of what a turn reads its own part of.
        stacked: (number in the body, stacked array outside) of what each turn puts out.
        length, reverse, unroll: as for `jax.lax.scan`.
    """

    body: Equations
    constants: tuple[tuple[int, int], ...]
    carries: tuple[tuple[int, int, int, int], ...]
    each: tuple[tuple[int, int], ...]
    stacked: tuple[tuple[int, int], ...]
    length: int
    reverse: bool
    unroll: int | bool

    @property
    def reads(self) -> tuple[int, ...]:
        return (
            *(outer for outer, _ in self.constants),
            *(c[0] for c in self.carries),
            *(outer for outer, _ in self.each),
        )

    @property
    def makes(self) -> tuple[int, ...]:
        return (*(carry[3] for carry in self.carries), *(outer for _, outer in self.stacked))

    def run(self, values: Values) -> None:
        """Add what it makes to `values`."""
        fixed = {inner: values[outer] for outer, inner in self.constants}

        def turn(carry, each):
            inside = {**fixed, **dict(zip((c[1] for c in self.carries), carry, strict=True))}
            inside.update(zip((inner for _, inner in self.each), each, strict=True))
            self.body.run(inside)
            return tuple(inside[c[2]] for c in self.carries), tuple(inside[inner] for inner, _ in self.stacked)

        start = tuple(values[carry[0]] for carry in self.carries)
        each = tuple(values[outer] for outer, _ in self.each)
        end, stacked = jax.lax.scan(turn, start, each, length=self.length, reverse=self.reverse, unroll=self.unroll)
        values.update(zip(self.makes, (*end, *stacked), strict=True))

    def closed(self, carries: Collection[int], stacked: Iterable[tuple[int, int]]) -> set[int]:
        """Positions of the carries that these carries and outputs need, themselves included."""
        found = set(carries)
        inner = [pair[0] for pair in stacked]
        while True:
            needed = self.body.needs([self.carries[i][2] for i in found] + inner)
            more = {i for i, carry in enumerate(self.carries) if carry[1] in needed} | found
            if more == found:
                return found
            found = more


@dataclasses.dataclass(frozen=True)
class Equations:
    """Equations and loops in order, and the arrays that they have of their own, by number."""

    steps: tuple[Equation | Loop, ...]
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
                needed.update(_reads_for(step, made))
        return needed

    def only(self, outputs: Iterable[int]) -> Equations:
        """Those that these outputs depend on."""
        needed, steps = set(outputs), []
        for step in reversed(self.steps):
            made = needed.intersection(step.makes)
            if made:
                steps.append(_trimmed(step, made))
                needed.update(steps[-1].reads)
        return Equations(tuple(reversed(steps)), self.constants)


def _reads_for(step: Equation | Loop, made: set[int]) -> tuple[int, ...]:
    return step.reads if isinstance(step, Equation) else _trimmed(step, made).reads


def _trimmed(step: Equation | Loop, made: set[int]) -> Equation | Loop:
    """What is needed of a step to make these."""
    if isinstance(step, Equation) or made.issuperset(step.makes):
        return step
    stacked = [pair for pair in step.stacked if pair[1] in made]
    carries = step.closed({i for i, carry in enumerate(step.carries) if carry[3] in made}, stacked)
    body = step.body.only([step.carries[i][2] for i in carries] + [inner for inner, _ in stacked])
    return _narrowed(step, body, carries, stacked)


# ── a cut ────────────────────────────────────────────────────────────────────────────────────────────


def cut(equations: Equations, first: Iterable[int], later: Iterable[int]) -> tuple[Equations, Equations, list[int]]:
    """(what the outputs `first` need, the rest of what the outputs `later` need, what crosses between them)."""
    needed, wanted = equations.needs(first), set(later)
    ahead: list[Equation | Loop] = []
    behind: list[Equation | Loop] = []
    for step in reversed(equations.steps):
        now = needed.intersection(step.makes)
        then = wanted.intersection(step.makes) - now
        if now and then and isinstance(step, Loop):
            head, tail = _cut_loop(step, now, then)
            ahead.append(head)
            behind += [tail] if tail.makes else []
        elif now:
            ahead.append(_trimmed(step, now))
            continue
        elif then:
            behind.append(_trimmed(step, then))
        if then:
            wanted.update(behind[-1].reads if behind else ())
    made = {number for step in ahead for number in step.makes}
    parts = (Equations(tuple(reversed(steps)), equations.constants) for steps in (ahead, behind))
    return *parts, sorted(wanted & made)


def _cut_loop(loop: Loop, now: set[int], then: set[int]) -> tuple[Loop, Loop]:
    """A loop that makes `now`, and one that makes `then`, which reads what the first kept of each turn."""
    stacked = [pair for pair in loop.stacked if pair[1] in now]
    carried = loop.closed({i for i, carry in enumerate(loop.carries) if carry[3] in now}, stacked)
    first = [loop.carries[i][2] for i in carried] + [inner for inner, _ in stacked]
    # What the first loop's turns make anyway comes out of it directly.
    known = loop.body.needs(first)
    stacked += [pair for pair in loop.stacked if pair[1] in then and pair[0] in known]
    rest = [pair for pair in loop.stacked if pair[1] in then and pair[0] not in known]
    left = {i for i, carry in enumerate(loop.carries) if carry[3] in then and i not in carried}
    left = loop.closed(left, rest) - carried
    later = [loop.carries[i][2] for i in left] + [inner for inner, _ in rest]
    head_body, tail_body, crossing = cut(loop.body, first, later)
    read = tail_body.needs(later)
    crossing += [loop.carries[i][1] for i in carried if loop.carries[i][1] in read]
    kept = [(inner, next(_numbers)) for inner in crossing]
    head = _narrowed(loop, head_body, carried, [*stacked, *kept])
    tail = _narrowed(loop, tail_body, left, rest)
    return head, dataclasses.replace(tail, each=(*tail.each, *((outer, inner) for inner, outer in kept)))


def _narrowed(loop: Loop, body: Equations, carries: Collection[int], stacked: Iterable[tuple[int, int]]) -> Loop:
    """A loop over a part of the body."""
    stacked, carried = tuple(stacked), tuple(loop.carries[i] for i in sorted(carries))
    needed = body.needs([carry[2] for carry in carried] + [inner for inner, _ in stacked])
    return dataclasses.replace(
        loop,
        body=body,
        constants=tuple(pair for pair in loop.constants if pair[1] in needed),
        carries=carried,
        each=tuple(pair for pair in loop.each if pair[1] in needed),
        stacked=stacked,
    )


# ── from a trace ─────────────────────────────────────────────────────────────────────────────────────


def equations_of(traced: ClosedJaxpr) -> tuple[Equations, tuple[int, ...], tuple[int, ...]]:
    """(equations, numbers of the inputs, numbers of the outputs) of what `jax.make_jaxpr` returned."""
    steps: list[Equation | Loop] = []
    constants: Values = {}
    inputs = tuple(next(_numbers) for _ in _open(traced)[0].invars)
    outputs = _add(traced, inputs, steps, constants)
    return Equations(tuple(steps), constants), inputs, tuple(outputs)


def _add(traced: Any, inputs: Sequence[int], steps: list[Equation | Loop], constants: Values) -> list[int]:
    """Append the equations of a function called with `inputs`; the numbers of what it returns."""
    jaxpr, arrays = _open(traced)
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def number(atom: Any) -> int:
        if not isinstance(atom, Literal):
            return known[atom]
        fixed = next(_numbers)
        constants[fixed] = jnp.asarray(atom.val, atom.aval.dtype)
        return fixed

    for variable, array in zip(jaxpr.constvars, arrays, strict=True):
        known[variable] = next(_numbers)
        constants[known[variable]] = array
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _GROUPS:
            made = _add(eqn.params["jaxpr"], [number(atom) for atom in eqn.invars], steps, constants)
        else:
            made = [next(_numbers) for _ in eqn.outvars]
            if eqn.primitive.name == "scan":
                steps.append(_loop(eqn, [number(atom) for atom in eqn.invars], made))
            else:
                steps.append(Equation(eqn, tuple(known[v] for v in _variables(eqn)), tuple(made)))
        known.update(zip(eqn.outvars, made, strict=True))
    return [number(atom) for atom in jaxpr.outvars]


def _loop(eqn: JaxprEqn, reads: list[int], makes: list[int]) -> Loop:
    body, inputs, outputs = equations_of(eqn.params["jaxpr"])
    fixed, carried = _counts(eqn)
    end = fixed + carried
    return Loop(
        body=body,
        constants=tuple(zip(reads[:fixed], inputs[:fixed], strict=True)),
        carries=tuple(zip(reads[fixed:end], inputs[fixed:end], outputs[:carried], makes[:carried], strict=True)),
        each=tuple(zip(reads[end:], inputs[end:], strict=True)),
        stacked=tuple(zip(outputs[carried:], makes[carried:], strict=True)),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )


def _counts(eqn: JaxprEqn) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many are carried; jax 0.12 tells it by a tree."""
    if "ft_in" in eqn.params:
        constants, carries, _ = eqn.params["ft_in"].unpack()
        return len(constants), len(carries)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def _open(traced: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """A function's equations and the arrays of its own, whichever way the parameter of an equation holds them."""
    return getattr(traced, "jaxpr", traced), getattr(traced, "consts", ())


def _variables(eqn: JaxprEqn) -> list[Any]:
    """What an equation reads, each once."""
    return list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
