"""Which sample each position of the stream has: shuffled, repeated and mixed from several sources."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import grain
import numpy as np

from hetjax.data.block_shuffle import BlockShuffle
from hetjax.data.sources import TrainSources
from hetjax.errors import DataError

FOREVER = 2**31
"""Passes over the data; grain's endless repeat has no length, so it cannot be split into chunks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leg:
    """The part of the stream from position `begin` on in which sources are mixed in these `proportions`.

    `taken` is how many samples of each source stand before it. Names ascend, so that the mix depends on nothing else.
    """

    begin: int
    proportions: Mapping[str, int]
    taken: Mapping[str, int]

    def __post_init__(self):
        object.__setattr__(self, "proportions", dict(sorted(self.proportions.items())))


class Place(NamedTuple):
    """The source of a position, and how many of its samples stand before the position in the leg."""

    source: str
    count: int


class SampleOrder:
    """The sample of each position of a stream, by its index in the sources, one behind the other.

    Sources are mixed as evenly as their proportions allow, by position alone: so that every process finds the sample of
    its rows by itself, and a position and a few counts are the state. Each source has an order of its own, which goes
    on whatever the others do. Without weights the proportions are the samples an epoch has of each source.

    Args:
        sources: of training samples.
        shuffle: whether each pass over a source has an order of its own.
        seed: of these orders.
        epochs: passes over the data; None for ever.
    """

    def __init__(self, sources: TrainSources, *, shuffle: bool, seed: int, epochs: int | None):
        self._names = [config.label for config in sources.configs]
        self._samples = dict(zip(self._names, map(len, sources.sources), strict=True))
        self._offsets = dict(zip(self._names, np.cumsum([0, *self._samples.values()]).tolist(), strict=False))
        self._blocks = {
            name: getattr(source, "blocks", None) for name, source in zip(self._names, sources.sources, strict=True)
        }
        self._shuffle, self._seed = shuffle, seed
        proportions = _proportions(sources)
        has_weights = sources.configs[0].weight is not None
        self.epoch = sum(self._samples.values() if has_weights else proportions.values())
        self.total = self.epoch * (FOREVER if epochs is None else epochs)
        self._legs = [Leg(begin=0, proportions=proportions, taken=dict.fromkeys(self._names, 0))]
        self._numbers = {name: number for number, name in enumerate(self._names)}  # which seed each source has
        self._orders = self._source_orders()

    def __getitem__(self, position: int) -> int:
        leg = next(leg for leg in reversed(self._legs) if leg.begin <= position)
        name, count = _place(position - leg.begin, leg.proportions)
        return self._offsets[name] + self._orders[name][leg.taken[name] + count]

    def state(self, seen: int, oldest: int | None = None) -> dict[str, Any]:
        """Return what a stream needs to go on after `seen` positions, fit for JSON.

        With `oldest`, positions from there on are still asked for.
        """
        first = seen if oldest is None else min(seen, oldest)
        legs = [
            leg
            for leg, end in zip(self._legs, [*(leg.begin for leg in self._legs[1:]), None], strict=True)
            if end is None or end > first
        ]
        return {
            "sources": {name: [self._samples[name], self._numbers[name], self._groups(name)] for name in self._names},
            "legs": [[leg.begin, dict(leg.proportions), dict(leg.taken)] for leg in legs],
        }

    def upgraded(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a state with sources; one from before there were several has the number of its samples instead."""
        if "samples" not in state or "sources" in state or len(self._names) > 1:
            return state
        name, samples = self._names[0], state["samples"]
        return {**state, "sources": {name: [samples, 0, 0]}, "legs": [[0, {name: samples}, {name: 0}]]}

    def resume(self, state: Mapping[str, Any], seen: int) -> None:
        """Go on as `state` says: the same order, and from position `seen` on the proportions of this run.

        Raises:
            DataError: a source of the state is not there, or has another number of samples, or its samples are shuffled
                in other groups.
        """
        sources, legs = self._renamed(state)
        for name, (samples, _, groups) in sources.items():
            if name not in self._samples:
                raise DataError(
                    f"source '{name}' is in the saved state, but not in this run, which has {', '.join(self._names)}; "
                    "give the one that it is `name: …`, or keep it with weight 0"
                )
            if samples != self._samples[name]:
                raise DataError(
                    f"dataset '{name}': samples is {samples} in the saved state and {self._samples[name]} in this run, "
                    "so the order of samples cannot continue; use the same, or begin a new run"
                )
            if groups != self._groups(name):
                raise DataError(
                    f"dataset '{name}': its rows stand in other row groups than in the saved state, so the order of "
                    "samples cannot continue; use the same files, or begin a new run"
                )
        wanted = self._legs[-1].proportions
        # A source that is new here gets a seed that none of the state has.
        taken_numbers = {number for _, number, _ in sources.values()}
        free = iter(sorted(set(range(len(sources) + len(self._names))) - taken_numbers))
        self._numbers = {name: sources[name][1] if name in sources else next(free) for name in self._names}
        self._orders = self._source_orders()
        self._legs = legs
        if legs[-1].proportions != wanted:
            taken = dict.fromkeys(self._names, 0) | dict(legs[-1].taken)
            for name, count in _counts(seen - legs[-1].begin, legs[-1].proportions).items():
                taken[name] += count
            self._legs = [*legs, Leg(begin=seen, proportions=wanted, taken=taken)]

    def _renamed(self, state: Mapping[str, Any]) -> tuple[Mapping[str, list[int]], list[Leg]]:
        """Return sources and legs of a state; one that has a single source may call it otherwise."""
        new = {}
        if len(state["sources"]) == len(self._names) == 1:
            new = {next(iter(state["sources"])): self._names[0]}
        sources = {new.get(name, name): value for name, value in state["sources"].items()}
        legs = [
            Leg(
                begin=begin,
                proportions={new.get(name, name): value for name, value in proportions.items()},
                taken={new.get(name, name): value for name, value in taken.items()},
            )
            for begin, proportions, taken in state["legs"]
        ]
        return sources, legs

    def _groups(self, name: str) -> int:
        """Return a checksum of the blocks in which samples of a source are shuffled; 0 where all are together."""
        return zlib.crc32(np.asarray(self._blocks[name], "<i8").tobytes()) if self._is_grouped(name) else 0

    def _is_grouped(self, name: str) -> bool:
        blocks = self._blocks[name]
        return self._shuffle and blocks is not None and len(blocks) > 1

    def _source_orders(self) -> dict[str, grain.MapDataset | BlockShuffle]:
        return {name: self._source_order(name) for name in self._names}

    def _source_order(self, name: str) -> grain.MapDataset | BlockShuffle:
        seed = spread(self._seed, self._numbers[name])
        if self._is_grouped(name):
            return BlockShuffle(self._blocks[name], seed=seed)
        order = grain.MapDataset.range(self._samples[name])
        if self._shuffle:
            order = order.shuffle(seed=seed)
        return order.repeat(FOREVER)


def spread(seed: int, number: int = 0) -> int:
    """Return a seed for grain, which adds the epoch to it: neighbouring ones would repeat each other's orders."""
    return int(np.random.SeedSequence((seed, number) if number else seed).generate_state(1)[0])


def _proportions(sources: TrainSources) -> dict[str, int]:
    """Return how many samples of each source are mixed together, as whole numbers."""
    names = [config.label for config in sources.configs]
    if sources.configs[0].weight is None:
        counts = [
            max(1, round(len(source) * config.repeat))
            for config, source in zip(sources.configs, sources.sources, strict=True)
        ]
        return dict(zip(names, counts, strict=True))
    weights = [Fraction(repr(float(config.weight))) for config in sources.configs]
    whole = math.lcm(*(weight.denominator for weight in weights))
    return {name: int(weight * whole) for name, weight in zip(names, weights, strict=True)}


def _place(position: int, proportions: Mapping[str, int]) -> Place:
    """Return which source has a position of the mix.

    As in grain's `MapDataset.mix`: the first source takes the positions at which its count, rounded down, rises; the
    others share out the rest in the same way.
    """
    left = sum(proportions.values())
    for name, part in proportions.items():
        rest, rest_behind = position * (left - part) // left, (position + 1) * (left - part) // left
        if position - rest != position + 1 - rest_behind:
            return Place(name, position - rest)
        left -= part
        position = rest
        if not left:
            break
    raise AssertionError(f"no source has position {position} of {proportions}")


def _counts(positions: int, proportions: Mapping[str, int]) -> dict[str, int]:
    """Return how many of the first `positions` of a mix each source has."""
    counts, left = {}, sum(proportions.values())
    for name, part in proportions.items():
        rest = positions * (left - part) // left if left else 0
        counts[name] = positions - rest
        left -= part
        positions = rest
    return counts
