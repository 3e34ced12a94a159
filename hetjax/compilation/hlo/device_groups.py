"""Which devices take part together in a collective, in every way in which XLA writes it, and along which mesh axes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

Group = tuple[int, ...]
"""Devices by their place in the program's mesh, in row-major order."""


def groups_of(attributes: str, devices: int) -> tuple[Group, ...]:
    """Return the groups of devices of a collective's attributes; `devices` are those of the whole program.

    Raises ValueError where they cannot be read, or are of unlike sizes.
    """
    if "replica_groups={}" in attributes:
        return (tuple(range(devices)),)
    for pattern, read in _FORMS:
        if (match := pattern.search(attributes)) is not None:
            return read(match[0])
    raise ValueError(f"no replica groups are known in: {attributes.strip()[:300]}")


def pairs_of(attributes: str) -> tuple[tuple[int, int], ...]:
    """Return the (source, target) pairs of a collective-permute's attributes."""
    found = _PAIRS.search(attributes)
    return _pairs(found[0]) if found else ()


def axes_along(groups: Iterable[Sequence[int]], axes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes of a mesh along which the devices of a group differ, in the mesh's order.

    Args:
        groups: groups of devices, or pairs, by their place in the mesh in row-major order.
        axes: the sizes of the mesh's axes by their names, in its order.

    Raises ValueError for a device outside of the mesh.
    """
    sizes, found = tuple(axes.values()), set()
    for group in groups:
        if max(group) >= math.prod(sizes):
            raise ValueError(f"device {max(group)} is not one of the {math.prod(sizes)} of a mesh {dict(axes)}")
        places = np.unravel_index(np.asarray(group), sizes)
        found |= {name for name, along in zip(axes, places, strict=True) if (along != along[0]).any()}
    return tuple(name for name in axes if name in found)


@functools.cache
def _listed(text: str) -> tuple[Group, ...]:
    """`{{0,1},{2,3}}`."""
    groups = tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", text))
    if len({len(group) for group in groups}) > 1:
        raise ValueError(f"replica groups of unlike sizes: {text}")
    return groups


@functools.cache
def _counted(text: str) -> tuple[Group, ...]:
    """`[2,4]<=[4,2]T(1,0)`: two groups of four, of the devices counted in rows of two and transposed."""
    shape, source = text.split("<=")
    return _rows(_iota(source).reshape(_numbers(shape)))


@functools.cache
def _of_mesh(text: str) -> tuple[Group, ...]:
    """`mesh['a'=4,'b'=2], device_ids=(…) {'b'}`; a part of an axis is written `'a':(1)2`, two behind one."""
    mesh, _, along = text.rpartition("{")
    mesh, _, ids = mesh.partition("device_ids=")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    count = math.prod(sizes.values())
    ids = ids.strip().removeprefix("(").removesuffix(")")
    devices = np.arange(count) if not ids else _iota(ids) if "[" in ids else np.array(_numbers(ids))
    parts = {name: [size] for name, size in sizes.items()}
    chosen = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along):
        chosen[name] = 0
        if size:
            parts[name] = [int(before), int(size), sizes[name] // (int(before) * int(size))]
            chosen[name] = 1
    places = [(name, index) for name, of_axis in parts.items() for index in range(len(of_axis))]
    inside = [place for place, (name, index) in enumerate(places) if chosen.get(name) == index]
    outside = [place for place in range(len(places)) if place not in inside]
    split = devices.reshape([size for of_axis in parts.values() for size in of_axis])
    size = math.prod(split.shape[place] for place in inside)
    return _rows(split.transpose(outside + inside).reshape(-1, size))


@functools.cache
def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((int(source), int(target)) for source, target in re.findall(r"\{(\d+),(\d+)\}", text))


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: the numbers from 0 in rows of two, transposed."""
    shape, _, order = text.partition("T")
    sizes = _numbers(shape)
    counted = np.arange(math.prod(sizes)).reshape(sizes)
    return counted.transpose(_numbers(order)) if order else counted


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _rows(groups: np.ndarray) -> tuple[Group, ...]:
    return tuple(tuple(map(int, group)) for group in groups)


_PAIRS = re.compile(r"source_target_pairs=\{\{.*?\}\}")
_FORMS: tuple[tuple[re.Pattern, Callable[[str], tuple[Group, ...]]], ...] = (
    (re.compile(r"(?<=replica_groups=)\{\{[\d,{}]+\}\}"), _listed),
    (re.compile(r"(?<=replica_groups=)\[\d+,\d+\]<=\[[\d,]+\](?:T\([\d,]+\))?"), _counted),
    (re.compile(r"(?<=replica_groups=)mesh\[[^\]]*\][^{]*\{[^}]*\}"), _of_mesh),
)
