"""A pattern of layers as repeated units: "MEMEM" is ME twice, then M."""

from __future__ import annotations

import dataclasses
import functools


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that stand in the place `name` of a model: those of `unit`, one after another, `repeats` times.

    Attributes:
        name: attribute that holds them.
        unit: one letter a layer.
        repeats: how often the unit comes.
    """

    name: str
    unit: str
    repeats: int

    @property
    def layers(self) -> tuple[str, ...]:
        """Attributes of the unit's layers, in order."""
        return tuple(f"layer{i}" for i in range(len(self.unit)))


def find_groups(pattern: str) -> tuple[Group, ...]:
    """The groups whose units have the fewest letters in all, which is how many layers a compiler sees.

    Of equal ones those with the most repeats, so that a cut between two repeats finds more places; of these those
    whose first groups are the shortest.
    """

    @functools.cache
    def best(start: int) -> tuple[int, int, tuple[tuple[str, int], ...]]:
        """(letters of all units, -repeats of all groups, the groups) of pattern[start:]."""
        if start == len(pattern):
            return 0, 0, ()
        found = []
        for size in range(1, len(pattern) - start + 1):
            unit, repeats = pattern[start : start + size], 0
            while pattern.startswith(unit, start + repeats * size):
                repeats += 1
                letters, rows, rest = best(start + repeats * size)
                found.append((letters + size, rows - repeats, ((unit, repeats), *rest)))
        return min(found, key=lambda each: each[:2])

    return tuple(Group(name=f"group{i}", unit=unit, repeats=repeats) for i, (unit, repeats) in enumerate(best(0)[2]))
