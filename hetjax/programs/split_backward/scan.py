"""Run and split the equation of a `jax.lax.scan`: into two, of which the second reads what the first made."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import NamedTuple

import jax

from hetjax.programs.split_backward.equations import Equations, Values, new_number, scoped, split


class Carry(NamedTuple):
    """A value that one iteration hands to the next, by the numbers that it has.

    Attributes:
        start: the first value, outside.
        current, following: the value that an iteration reads and the one that it makes, in the body.
        end: the last value, outside.
    """

    start: int
    current: int
    following: int
    end: int


class ScanValue(NamedTuple):
    """A value that goes into iterations or comes out of them, by the numbers that it has.

    Attributes:
        outer: the value outside, stacked over iterations unless all read the same.
        inner: the value in the body.
    """

    outer: int
    inner: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """A loop as `jax.lax.scan` has it.

    Attributes:
        body: the equations of one iteration.
        constants: what every iteration reads whole.
        carries: the values that iterations hand on.
        each: arrays that an iteration reads its own part of.
        stacked: what each iteration returns.
        length, reverse, unroll: as for `jax.lax.scan`.
        scope: the scopes that it was traced in.
    """

    body: Equations
    constants: tuple[ScanValue, ...]
    carries: tuple[Carry, ...]
    each: tuple[ScanValue, ...]
    stacked: tuple[ScanValue, ...]
    length: int
    reverse: bool
    unroll: int | bool
    scope: str

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers outside of constants, first values of carries, and arrays that iterations read their part of."""
        constants, each = (tuple(value.outer for value in group) for group in (self.constants, self.each))
        return (*constants, *(carry.start for carry in self.carries), *each)

    @property
    def makes(self) -> tuple[int, ...]:
        """Numbers outside of last values of carries, and stacked results."""
        return (*(carry.end for carry in self.carries), *(value.outer for value in self.stacked))

    def run(self, values: Values) -> None:
        """Trace a scan over the body."""
        fixed = {value.inner: values[value.outer] for value in self.constants}

        def iterate(carry, each):
            inside = {**fixed, **dict(zip((c.current for c in self.carries), carry, strict=True))}
            inside.update(zip((value.inner for value in self.each), each, strict=True))
            self.body.run(inside)
            following = tuple(inside[c.following] for c in self.carries)
            return following, tuple(inside[value.inner] for value in self.stacked)

        start = tuple(values[carry.start] for carry in self.carries)
        each = tuple(values[value.outer] for value in self.each)
        options = {"length": self.length, "reverse": self.reverse, "unroll": self.unroll}
        with scoped(self.scope):
            end, stacked = jax.lax.scan(iterate, start, each, **options)
        values.update(zip(self.makes, (*end, *stacked), strict=True))

    def trimmed(self, made: set[int]) -> Scan:
        """Return a scan of those carries and results alone that these depend on."""
        if made.issuperset(self.makes):
            return self
        stacked = [value for value in self.stacked if value.outer in made]
        carries = self._closed({i for i, carry in enumerate(self.carries) if carry.end in made}, stacked)
        return self._narrowed(self.body.only(self._ends(carries, stacked)), carries, stacked)

    def split(self, now: set[int], then: set[int]) -> tuple[Scan, Scan | None]:
        """Return two scans; the second reads what the first kept of each iteration."""
        stacked = [value for value in self.stacked if value.outer in now]
        carried = self._closed({i for i, carry in enumerate(self.carries) if carry.end in now}, stacked)
        first = self._ends(carried, stacked)
        # What the first scan's iterations make anyway comes out of it directly.
        known = self.body.needs(first)
        stacked += [value for value in self.stacked if value.outer in then and value.inner in known]
        rest = [value for value in self.stacked if value.outer in then and value.inner not in known]
        left = {i for i, carry in enumerate(self.carries) if carry.end in then and i not in carried}
        left = self._closed(left, rest) - carried
        later = self._ends(left, rest)
        head_body, tail_body, handed_on = split(self.body, first, later)
        read = tail_body.needs(later)
        handed_on += [self.carries[i].current for i in carried if self.carries[i].current in read]
        kept = [ScanValue(new_number(), inner) for inner in handed_on]
        head = self._narrowed(head_body, carried, [*stacked, *kept])
        tail = self._narrowed(tail_body, left, rest)
        tail = dataclasses.replace(tail, each=(*tail.each, *kept))
        return head, tail if tail.makes else None

    def _ends(self, carries: Collection[int], stacked: Iterable[ScanValue]) -> list[int]:
        """Return the numbers in the body of what these carries become, and of these outputs."""
        return [self.carries[i].following for i in sorted(carries)] + [value.inner for value in stacked]

    def _closed(self, carries: Collection[int], stacked: Iterable[ScanValue]) -> set[int]:
        """Return the positions of the carries that these carries and outputs need, themselves included."""
        found = set(carries)
        while True:
            needed = self.body.needs(self._ends(found, stacked))
            more = {i for i, carry in enumerate(self.carries) if carry.current in needed} | found
            if more == found:
                return found
            found = more

    def _narrowed(self, body: Equations, carries: Collection[int], stacked: Iterable[ScanValue]) -> Scan:
        """Return a scan over a part of the body."""
        stacked = tuple(stacked)
        needed = body.needs(self._ends(carries, stacked))
        return dataclasses.replace(
            self,
            body=body,
            constants=tuple(value for value in self.constants if value.inner in needed),
            carries=tuple(self.carries[i] for i in sorted(carries)),
            each=tuple(value for value in self.each if value.inner in needed),
            stacked=stacked,
        )
