"""Assign items of unlike cost to the rows of an encoder's microbatch, so that its shards have about the same to do.

Finding the best of all assignments is NP-hard (multiprocessor scheduling); two greedy ones come close, and the one that
moves less is taken where it is even enough:

1. what lies in the shards of its own samples stays, and items go from the fullest shard to the emptiest one until none
   is above the mean by more than `even`: so little crosses that need not;
2. the longest first, each to the emptiest shard (Graham 1969); the shards so found then go to the devices where most
   of their items are at home.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

# G microbatches · H shards · I items · K resources of a row
# R rows of the microbatch, those of a shard next to each other

_EVEN = 1.02  # load of the fullest shard over the mean at which nothing more is moved


class Items(NamedTuple):
    """What is to be assigned.

    Attributes:
        costs: what an encoder has to do for each, in any unit.
        amounts: what each takes of every resource of a row.
        homes: the row of the sample that it is of.
    """

    costs: Float[np.ndarray, " I"]
    amounts: Int[np.ndarray, "I K"]
    homes: Int[np.ndarray, " I"]


class Rooms(NamedTuple):
    """The rows that items go to.

    Attributes:
        shards: the number of shards, H.
        rows: rows of each shard.
        capacity: what a row has of every resource.
    """

    shards: int
    rows: int
    capacity: Int[np.ndarray, " K"]


class Assignment(NamedTuple):
    """Where items go.

    Attributes:
        rows: the row of each.
        before: the load of each shard where every item is in the row of its own sample.
        after: the load of each shard as assigned.
    """

    rows: Int[np.ndarray, " I"]
    before: Float[np.ndarray, " H"]
    after: Float[np.ndarray, " H"]


def assign(items: Items, rooms: Rooms, *, even: float = _EVEN) -> Assignment:
    """Return the row of each item, in which all items of a row fit.

    The rows of the items' own samples must have room for them; then there is an assignment.
    """
    home = items.homes // rooms.rows
    before = np.bincount(home, items.costs, rooms.shards)
    best = _Filling(items, rooms, items.homes.copy())
    goal = even * before.mean()
    best.level(goal)
    if best.load.max() > goal:
        longest_first = _longest_first(items, rooms)
        if longest_first is not None:
            longest_first.level(goal)
            if longest_first.load.max() < best.load.max() * (1 - 1e-9):
                best = longest_first.at_home()
    return Assignment(best.row, before, best.load.copy())


def imbalance(loads: Float[np.ndarray, "G H"]) -> float:
    """Return how much longer G microbatches take than if the loads of their shards were even: fullest over mean."""
    total = loads.mean(axis=1).sum()
    return float(loads.max(axis=1).sum() / total) if total else 1.0


class _Filling:
    """An assignment on its way: the row of each item, what is used of rows, and the load of shards."""

    def __init__(self, items: Items, rooms: Rooms, row: Int[np.ndarray, " I"]):
        self.items, self.rooms, self.row = items, rooms, row
        self.used = np.zeros((rooms.shards * rooms.rows, len(rooms.capacity)), np.int64)
        placed = row >= 0
        np.add.at(self.used, row[placed], items.amounts[placed])
        self.load = np.bincount(row[placed] // rooms.rows, items.costs[placed], rooms.shards)

    def room_for(self, item: int, shard: int) -> int | None:
        """Return the emptiest row of a shard that an item fits into."""
        rows = slice(shard * self.rooms.rows, (shard + 1) * self.rooms.rows)
        left = self.rooms.capacity - self.used[rows] - self.items.amounts[item]
        fits = np.flatnonzero((left >= 0).all(axis=1))
        if not len(fits):
            return None
        own = self.items.homes[item] - rows.start
        return rows.start + int(own if own in fits else fits[np.argmax(left[fits].sum(axis=1))])

    def put(self, item: int, row: int) -> None:
        """Move an item to a row, from the one it is in."""
        if self.row[item] >= 0:
            self.used[self.row[item]] -= self.items.amounts[item]
            self.load[self.row[item] // self.rooms.rows] -= self.items.costs[item]
        self.row[item] = row
        self.used[row] += self.items.amounts[item]
        self.load[row // self.rooms.rows] += self.items.costs[item]

    def level(self, goal: float) -> None:
        """Move, or swap, items of the fullest shard until it is at the goal or nothing helps."""
        for _ in range(4 * len(self.row)):
            fullest = int(self.load.argmax())
            if self.load[fullest] <= goal or not (self._move(fullest, goal) or self._swap(fullest)):
                return

    def _move(self, fullest: int, goal: float) -> bool:
        """Move one item to the emptiest shard that has room: the largest that leaves neither beyond the mean."""
        mean, costs = self.load.mean(), self.items.costs
        own = np.flatnonzero(self.row // self.rooms.rows == fullest)
        own = own[np.argsort(-costs[own], kind="stable")]
        for shard in np.argsort(self.load, kind="stable")[:-1]:
            gap = self.load[fullest] - self.load[shard]
            wanted = min(self.load[fullest] - mean, goal - self.load[shard])
            # One that is a little larger than wanted may still help, where no smaller one is left.
            for item in (*own[costs[own] <= wanted], *own[(costs[own] > wanted) & (costs[own] < gap)][::-1]):
                row = self.room_for(item, shard)
                if row is not None and costs[item] > 0:
                    self.put(item, row)
                    return True
        return False

    def _swap(self, fullest: int) -> bool:
        """Swap an item of the fullest shard for a smaller one of another, the two that leave the larger load least."""
        costs, shard_of = self.items.costs, self.row // self.rooms.rows
        ours, others = np.flatnonzero(shard_of == fullest), np.flatnonzero(shard_of != fullest)
        more = costs[ours][:, None] - costs[others]
        larger = np.maximum(self.load[fullest] - more, self.load[shard_of[others]] + more)
        larger[more <= 0] = math.inf
        flat = larger.reshape(-1)
        tried = np.argpartition(flat, 63)[:64] if len(flat) > 64 else np.arange(len(flat))
        for place in tried[np.argsort(flat[tried], kind="stable")]:
            if flat[place] >= self.load[fullest] * (1 - 1e-9):
                return False
            mine, other = ours[place // len(others)], others[place % len(others)]
            if self._exchange(mine, other):
                return True
        return False

    def _exchange(self, one: int, other: int) -> bool:
        """Let two items take each other's rows, if both fit."""
        rows = self.row[one], self.row[other]
        more = self.items.amounts[one] - self.items.amounts[other]
        if np.any(self.used[rows[1]] + more > self.rooms.capacity) or np.any(
            self.used[rows[0]] - more > self.rooms.capacity
        ):
            return False
        self.put(one, rows[1])
        self.put(other, rows[0])
        return True

    def at_home(self) -> _Filling:
        """Return the same with its shards where most of their items, by what they take, are at home."""
        count, rows = self.rooms.shards, self.rooms.rows
        kept = np.zeros((count, count))
        np.add.at(kept, (self.row // rows, self.items.homes // rows), self.items.amounts[:, 0])
        _, shard = linear_sum_assignment(kept, maximize=True)
        return _Filling(self.items, self.rooms, shard[self.row // rows] * rows + self.row % rows)


def _longest_first(items: Items, rooms: Rooms) -> _Filling | None:
    """Put the longest first, each into the emptiest shard with room; None where one finds none."""
    filling = _Filling(items, rooms, np.full(len(items.costs), -1))
    for item in np.argsort(-items.costs, kind="stable"):
        rows = (filling.room_for(item, shard) for shard in np.argsort(filling.load, kind="stable"))
        row = next((row for row in rows if row is not None), None)
        if row is None:
            return None
        filling.put(int(item), row)
    return filling
