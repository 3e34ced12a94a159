"""Stack layers of several kinds in a pattern: few layers whose weights have leading "layers" dims, run by scans.

The pattern "MEM*EMEM*E" is the unit MEM*E, twice: a group. A group holds one layer for each layer of its unit, with
the weights of all repeats stacked, and scans over the repeats; groups stand in units, too. So what a compiler sees
grows with the units, not with the depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TypeVar, Union

import jax
from flax import nnx

from hetjax.models.parts.groups import Group, Single, find_groups
from hetjax.models.parts.stack import Carry, Out, Own, set_since, values_of
from hetjax.models.remat import rematerialized
from hetjax.models.scopes import scope

Items = tuple[Single | Group, ...]
Build = Callable[[str, nnx.Rngs], nnx.Module]
"""(letter, random numbers) -> a layer."""
LayerCall = Callable[[nnx.Module, Carry, Own], tuple[Carry, Out]]
"""(layer, carry, what it has of its own) -> (carry, out)."""
Leaf = TypeVar("Leaf")
Tree = dict[str, Union[Leaf, "Tree[Leaf]"]]
"""Something for every layer: by the name of its group, and on by names in the unit, down to the layer's own."""


class Unit(nnx.Module):
    """Layers and groups as attributes."""

    def __init__(self, items: Items, build: Build, *, rngs: nnx.Rngs):
        for item in items:
            made = build(item.letter, rngs) if isinstance(item, Single) else _stacked(item, build, rngs)
            setattr(self, item.name, made)


class PatternStack(Unit):
    """Builds the layers of a pattern and runs them in order; `build(letter, rngs)` makes one.

    A unit is one repeat of an outermost group: what a pipeline stage can have or not. As in
    `hetjax.models.parts.stack`, weights are only ever read through a scan, also where a group has one unit.

    Attributes:
        groups: the outermost groups, with the repeats that this stage has.
    """

    def __init__(self, pattern: str, build: Build, *, rngs: nnx.Rngs):
        self.groups = find_groups(pattern)
        super().__init__(self.groups, build, rngs=rngs)

    @property
    def units(self) -> tuple[str, ...]:
        """The letters of every unit that this stage has, in order."""
        return tuple(group.letters for group in self.groups for _ in range(group.repeats))

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.units)

    def tree(self, make: Callable[[str, tuple[int, ...]], Leaf]) -> Tree[Leaf]:
        """Return `make(letter, sizes of the leading layers dims)` for each layer of each unit."""
        return _tree(self.groups, make, ())

    def scan(self, call: LayerCall, carry: Carry, each: Tree[Own] | None = None) -> tuple[Carry, Tree[Out]]:
        """Run `carry, out = call(layer, carry, own)` for each layer in turn: (the last carry, a `Tree` of the outs).

        `each` is a `Tree` of what layers have of their own, pytrees whose leaves lead with the layers dims; the outs
        are stacked like that. The backward computes again what the setting of `hetjax.models.remat` in force does not
        keep of a layer. Variables that a layer sets, and that are not nnx.Param, are set for all layers.
        """
        split = _split(self, self.groups)
        definitions, weights = (_parts(split, i) for i in (0, 1))
        carry, (outs, changed) = _run(self.groups, definitions, call, carry, weights, each)
        _take(self, self.groups, changed)
        return carry, outs

    def end_of_step(self) -> None:
        """Call the layers' own `end_of_step`, which may set variables that are not nnx.Param."""
        split = _split(self, self.groups)
        definitions, weights = (_parts(split, i) for i in (0, 1))
        _take(self, self.groups, _end(self.groups, definitions, weights))

    def keep(self, start: int, stop: int) -> None:
        """Drop all units but start..stop-1; what stays keeps its path."""
        kept, first = [], 0
        for group in self.groups:
            stay = slice(max(start - first, 0), min(stop - first, group.repeats))
            first += group.repeats
            if stay.start >= stay.stop:
                delattr(self, group.name)
                continue
            definition, weights = nnx.split(getattr(self, group.name))
            part = jax.tree.map(lambda weight, stay=stay: weight[stay], weights)
            setattr(self, group.name, nnx.merge(definition, part))
            kept.append(dataclasses.replace(group, repeats=stay.stop - stay.start))
        self.groups = tuple(kept)


def _stacked(group: Group, build: Build, rngs: nnx.Rngs) -> Unit:
    """The unit with the weights of all repeats, each from a key of its own."""
    make = nnx.vmap(
        lambda key: Unit(group.unit, build, rngs=nnx.Rngs(key)),
        in_axes=0,
        out_axes=0,
        transform_metadata={nnx.PARTITION_NAME: "layers"},
    )
    return make(jax.random.split(rngs.params(), group.repeats))


def _tree(items: Items, make: Callable[[str, tuple[int, ...]], Leaf], sizes: tuple[int, ...]) -> Tree[Leaf]:
    return {
        item.name: make(item.letter, sizes)
        if isinstance(item, Single)
        else _tree(item.unit, make, (*sizes, item.repeats))
        for item in items
    }


def _split(unit: nnx.Module, items: Items) -> Tree[tuple[nnx.GraphDef, nnx.State]]:
    """(definition, weights) of each layer."""
    return {
        item.name: nnx.split(getattr(unit, item.name))
        if isinstance(item, Single)
        else _split(getattr(unit, item.name), item.unit)
        for item in items
    }


def _parts(split: Tree[tuple[nnx.GraphDef, nnx.State]], index: int) -> Tree[nnx.GraphDef] | Tree[nnx.State]:
    return {name: _parts(each, index) if isinstance(each, dict) else each[index] for name, each in split.items()}


def _run(
    items: Items,
    definitions: Tree[nnx.GraphDef],
    call: LayerCall,
    carry: Carry,
    weights: Tree[nnx.State],
    each: Tree[Own] | None,
) -> tuple[Carry, tuple[Tree[Out], Tree[nnx.State]]]:
    """(the last carry, (outs, what layers have set))."""
    outs, changed = {}, {}
    for item in items:
        name, own = item.name, None if each is None else each[item.name]
        if isinstance(item, Single):
            layer = rematerialized(partial(_run_layer, definitions[name], call))
            carry, outs[name], changed[name] = layer(carry, weights[name], own)
        else:
            carry, (outs[name], changed[name]) = jax.lax.scan(
                lambda carry, unit, item=item: _run(item.unit, definitions[item.name], call, carry, *unit),
                carry,
                (weights[name], own),
                length=item.repeats,
            )
    return carry, (outs, changed)


def _run_layer(
    definition: nnx.GraphDef, call: LayerCall, carry: Carry, weights: nnx.State, own: Own
) -> tuple[Carry, Out, nnx.State]:
    layer, before = nnx.merge(definition, weights), values_of(weights)
    with scope("layer"):
        carry, out = call(layer, carry, own)
    return carry, out, set_since(before, layer)


def _end(items: Items, definitions: Tree[nnx.GraphDef], weights: Tree[nnx.State]) -> Tree[nnx.State]:
    changed = {}
    for item in items:
        name = item.name
        if isinstance(item, Single):
            layer, before = nnx.merge(definitions[name], weights[name]), values_of(weights[name])
            layer.end_of_step()
            changed[name] = set_since(before, layer)
        else:
            changed[name] = jax.vmap(partial(_end, item.unit, definitions[name]))(weights[name])
    return changed


def _take(unit: nnx.Module, items: Items, changed: Tree[nnx.State]) -> None:
    for item in items:
        if isinstance(item, Group):
            _take(getattr(unit, item.name), item.unit, changed[item.name])
        elif jax.tree.leaves(changed[item.name]):
            nnx.update(getattr(unit, item.name), changed[item.name])
