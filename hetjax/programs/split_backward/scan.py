"""A scan, which is cut into two scans."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

import jax

from hetjax.programs.split_backward.equations import Equations, Values, cut, new_number


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
        pairs = (*self.constants, *((carry[0], carry[1]) for carry in self.carries), *self.each)
        return tuple(outer for outer, _ in pairs)

    @property
    def makes(self) -> tuple[int, ...]:
        return (*(carry[3] for carry in self.carries), *(outer for _, outer in self.stacked))

    def run(self, values: Values) -> None:
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

    def trimmed(self, made: set[int]) -> Loop:
        if made.issuperset(self.makes):
            return self
        stacked = [pair for pair in self.stacked if pair[1] in made]
        carries = self._closed({i for i, carry in enumerate(self.carries) if carry[3] in made}, stacked)
        return self._narrowed(self.body.only(self._ends(carries, stacked)), carries, stacked)

    def cut(self, now: set[int], then: set[int]) -> tuple[Loop, Loop | None]:
        """The second loop reads what the first kept of each turn."""
        stacked = [pair for pair in self.stacked if pair[1] in now]
        carried = self._closed({i for i, carry in enumerate(self.carries) if carry[3] in now}, stacked)
        first = self._ends(carried, stacked)
        # What the first loop's turns make anyway comes out of it directly.
        known = self.body.needs(first)
        stacked += [pair for pair in self.stacked if pair[1] in then and pair[0] in known]
        rest = [pair for pair in self.stacked if pair[1] in then and pair[0] not in known]
        left = {i for i, carry in enumerate(self.carries) if carry[3] in then and i not in carried}
        left = self._closed(left, rest) - carried
        later = self._ends(left, rest)
        head_body, tail_body, handed_on = cut(self.body, first, later)
        read = tail_body.needs(later)
        handed_on += [self.carries[i][1] for i in carried if self.carries[i][1] in read]
        kept = [(inner, new_number()) for inner in handed_on]
        head = self._narrowed(head_body, carried, [*stacked, *kept])
        tail = self._narrowed(tail_body, left, rest)
        tail = dataclasses.replace(tail, each=(*tail.each, *((outer, inner) for inner, outer in kept)))
        return head, tail if tail.makes else None

    def _ends(self, carries: Collection[int], stacked: Iterable[tuple[int, int]]) -> list[int]:
        """Numbers in the body of what these carries become, and of these outputs."""
        return [self.carries[i][2] for i in sorted(carries)] + [inner for inner, _ in stacked]

    def _closed(self, carries: Collection[int], stacked: Iterable[tuple[int, int]]) -> set[int]:
        """Positions of the carries that these carries and outputs need, themselves included."""
        found = set(carries)
        while True:
            needed = self.body.needs(self._ends(found, stacked))
            more = {i for i, carry in enumerate(self.carries) if carry[1] in needed} | found
            if more == found:
                return found
            found = more

    def _narrowed(self, body: Equations, carries: Collection[int], stacked: Iterable[tuple[int, int]]) -> Loop:
        """A loop over a part of the body."""
        stacked = tuple(stacked)
        needed = body.needs(self._ends(carries, stacked))
        return dataclasses.replace(
            self,
            body=body,
            constants=tuple(pair for pair in self.constants if pair[1] in needed),
            carries=tuple(self.carries[i] for i in sorted(carries)),
            each=tuple(pair for pair in self.each if pair[1] in needed),
            stacked=stacked,
        )
