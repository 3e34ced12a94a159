"""Fold a pattern of layers into repeated units: "MEMEM" is ME twice, then M; a unit may have repeated units in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Single:
    """One layer of a unit.

    Attributes:
        name: attribute that holds it.
        letter: its kind.
    """

    name: str
    letter: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """A unit, `repeats` times one after another.

    Attributes:
        name: attribute that holds it; its layers have stacked weights.
        unit: what is repeated, in order.
        repeats: how often.
    """

    name: str
    unit: tuple[Single | Group, ...]
    repeats: int

    @property
    def letters(self) -> str:
        """The pattern of one repeat."""
        return "".join(item.letter if isinstance(item, Single) else item.letters * item.repeats for item in self.unit)


def find_groups(pattern: str) -> tuple[Group, ...]:
    """Return the groups with the fewest single layers in all units, which is how many layers a compiler sees.

    Of equal ones those with the most repeats, those inside of units aside, so that a cut between two repeats finds
    more places; of these the fewest groups.
    """

    @functools.cache
    def best(start: int) -> tuple[tuple[int, int, int], tuple[tuple[str, int], ...]]:
        """((singles, -repeats, groups), units and repeats) of pattern[start:]."""
        if start == len(pattern):
            return (0, 0, 0), ()
        found = []
        for unit, repeats in _starts(pattern, start):
            (singles, negated, groups), rest = best(start + len(unit) * repeats)
            found.append(((singles + _fold(unit)[0][0], negated - repeats, groups + 1), ((unit, repeats), *rest)))
        return min(found, key=lambda each: each[0])

    return tuple(_group(i, unit, repeats) for i, (unit, repeats) in enumerate(best(0)[1]))


@functools.cache
def _fold(unit: str) -> tuple[tuple[int, int], tuple[tuple[str, int], ...]]:
    """((singles, groups), parts and repeats) of a unit, with as few singles and then groups as can be."""
    if not unit:
        return (0, 0), ()
    (singles, groups), rest = _fold(unit[1:])
    found = [((singles + 1, groups), ((unit[0], 1), *rest))]
    for part, repeats in _starts(unit, 0):
        if repeats > 1:
            (singles, groups), rest = _fold(unit[len(part) * repeats :])
            inside = _fold(part)[0]
            found.append(((singles + inside[0], groups + inside[1] + 1), ((part, repeats), *rest)))
    return min(found, key=lambda each: each[0])


def _starts(pattern: str, start: int) -> Iterator[tuple[str, int]]:
    """Every (unit, repeats) that pattern[start:] begins with."""
    for size in range(1, len(pattern) - start + 1):
        unit, repeats = pattern[start : start + size], 1
        while pattern.startswith(unit, start + (repeats - 1) * size):
            yield unit, repeats
            repeats += 1


def _group(index: int, unit: str, repeats: int) -> Group:
    parts = _fold(unit)[1]
    items = (
        Single(name=f"layer{i}", letter=part) if count == 1 else _group(i, part, count)
        for i, (part, count) in enumerate(parts)
    )
    return Group(name=f"group{index}", unit=tuple(items), repeats=repeats)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a layer of a pattern is held.

    Attributes:
        letter: its kind.
        path: names of the groups it is in, and its own, e.g. "group3/group1/layer0".
        index: its place in the leading layers dims of its weights, one number a group.
    """

    letter: str
    path: str
    index: tuple[int, ...]


def layer_places(pattern: str) -> tuple[Place, ...]:
    """Return the places of all layers, in order."""
    return tuple(_places(find_groups(pattern), "", ()))


def groups_around(path: str) -> int:
    """Return how many groups a weight lies in, by its path "layers/group0/group1/...": loops inside of each other."""
    return sum(place.startswith("group") for place in path.split("/"))


def _places(items: tuple[Single | Group, ...], path: str, index: tuple[int, ...]) -> Iterator[Place]:
    for item in items:
        if isinstance(item, Single):
            yield Place(letter=item.letter, path=path + item.name, index=index)
        else:
            for repeat in range(item.repeats):
                yield from _places(item.unit, f"{path}{item.name}/", (*index, repeat))
