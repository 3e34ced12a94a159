"""Layers of several kinds in a pattern, held as few layers whose weights have a leading "layers" dim.

The pattern "MEM*EMEM*E" is the unit MEM*E, twice: a group. A group holds one layer for each letter of its unit, with
the weights of all repeats stacked, and scans over the repeats; so what a compiler sees grows with the units, not
with the depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from models.parts.groups import Group, find_groups
from models.parts.stack import set_since, values_of
from models.remat import rematerialized

Tree = dict[str, dict[str, Any]]
"""Something for every layer: by the name of its group, then by its name in the unit."""


class Unit(nnx.Module):
    """The layers of a group, one a letter, as its attributes."""

    def __init__(self, group: Group, build: Callable[[str, nnx.Rngs], nnx.Module], *, rngs: nnx.Rngs):
        for name, letter in zip(group.layers, group.unit, strict=True):
            setattr(self, name, build(letter, rngs))


class PatternStack(nnx.Module):
    """Builds the layers of a pattern and runs them in order; `build(letter, rngs)` makes one.

    A row is one repeat of a group's unit: what a pipeline stage can have or not. As in `models.parts.stack`, weights
    are only ever read through a scan, also where a group has one row.

    Attributes:
        groups: the groups, with the repeats that are here.
        rows: the unit of every row that is here, in order.
    """

    def __init__(self, pattern: str, build: Callable[[str, nnx.Rngs], nnx.Module], *, rngs: nnx.Rngs):
        self.groups = find_groups(pattern)
        for group in self.groups:
            make = nnx.vmap(
                lambda key, group=group: Unit(group, build, rngs=nnx.Rngs(key)),
                in_axes=0,
                out_axes=0,
                transform_metadata={nnx.PARTITION_NAME: "layers"},
            )
            setattr(self, group.name, make(jax.random.split(rngs.params(), group.repeats)))

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(group.unit for group in self.groups for _ in range(group.repeats))

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def tree(self, make: Callable[[str, int], Any]) -> Tree:
        """`make(letter, repeats)` for each layer of each unit."""
        return {
            group.name: {
                name: make(letter, group.repeats) for name, letter in zip(group.layers, group.unit, strict=True)
            }
            for group in self.groups
        }

    def scan(self, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, each: Tree | None = None):
        """`carry, out = step(layer, carry, own)` for each layer in turn: (the last carry, a `Tree` of the outs).

        `each` is a `Tree` of what layers have of their own, pytrees whose leaves lead with the repeats of the group;
        the outs are stacked like that. The backward computes again what the setting of `models.remat` in force does
        not keep of a layer. Variables that a layer sets, and that are not nnx.Param, are set here for all layers.
        """
        outs: Tree = {}
        for group in self.groups:
            own = None if each is None else each[group.name]
            carry, outs[group.name] = self._scan_group(group, step, carry, own)
        return carry, outs

    def _scan_group(self, group: Group, step, carry, each):
        unit = getattr(self, group.name)
        split = {name: nnx.split(getattr(unit, name)) for name in group.layers}

        def run(name, carry, weights, own):
            layer, before = nnx.merge(split[name][0], weights), values_of(weights)
            carry, out = step(layer, carry, own)
            return carry, out, set_since(before, layer)

        def body(carry, row):
            weights, own = row
            outs, changed = {}, {}
            for name in group.layers:
                layer = rematerialized(lambda *arguments, name=name: run(name, *arguments))
                given = (weights[name], None if own is None else own[name])
                carry, outs[name], changed[name] = layer(carry, *given)
            return carry, (outs, changed)

        weights = {name: state for name, (_, state) in split.items()}
        carry, (outs, changed) = jax.lax.scan(body, carry, (weights, each), length=group.repeats)
        _take(unit, changed)
        return carry, outs

    def end_of_step(self) -> None:
        """Call the layers' own `end_of_step`, which may set variables that are not nnx.Param."""
        for group in self.groups:
            unit, changed = getattr(self, group.name), {}
            for name in group.layers:
                definition, weights = nnx.split(getattr(unit, name))

                def end(weights, definition=definition):
                    layer, before = nnx.merge(definition, weights), values_of(weights)
                    layer.end_of_step()
                    return set_since(before, layer)

                changed[name] = jax.vmap(end)(weights)
            _take(unit, changed)

    def keep(self, start: int, stop: int) -> None:
        """Drop all rows but start..stop-1; what stays keeps its path."""
        kept, first = [], 0
        for group in self.groups:
            here = max(start - first, 0), min(stop - first, group.repeats)
            first += group.repeats
            if here[0] >= here[1]:
                delattr(self, group.name)
                continue
            definition, weights = nnx.split(getattr(self, group.name))
            part = jax.tree.map(lambda weight, here=here: weight[slice(*here)], weights)
            setattr(self, group.name, nnx.merge(definition, part))
            kept.append(dataclasses.replace(group, repeats=here[1] - here[0]))
        self.groups = tuple(kept)


def _take(unit: nnx.Module, changed: dict[str, nnx.State]) -> None:
    for name, state in changed.items():
        if jax.tree.leaves(state):
            nnx.update(getattr(unit, name), state)
