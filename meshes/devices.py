"""Read and write device ranges: "0-3", "0,2,5-7", "all", a number, or a list of numbers."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence

from hetjax.meshes.errors import PlacementError

Devices = str | int | Sequence[int]


def parse_devices(devices: Devices, *, module: str) -> tuple[int, ...] | None:
    """Read device numbers in the order written, or None for "all".

    Raises PlacementError on a malformed range, a negative number, or a device listed twice.
    """
    if isinstance(devices, int) and not isinstance(devices, bool):
        devices = str(devices)
    if isinstance(devices, str):
        if devices.strip() == "all":
            return None
        numbers = [number for part in devices.split(",") for number in _parse_range(part, devices, module)]
    else:
        numbers = _listed(devices, module)
    if not numbers:
        raise PlacementError(f'module \'{module}\': devices={devices!r} names no device; write e.g. "0-3" or "all"')
    if min(numbers) < 0:
        raise PlacementError(f"module '{module}': devices={devices!r} has a negative number; devices count from 0")
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise PlacementError(
            f"module '{module}': devices={devices!r} lists device {twice[0]} twice; a mesh holds each device once"
        )
    return tuple(numbers)


def _listed(devices: Sequence[int], module: str) -> list[int]:
    try:
        return [operator.index(number) for number in devices]
    except TypeError:
        raise PlacementError(
            f"module '{module}': devices={devices!r} is no list of device numbers; "
            'write e.g. [0, 1, 2, 3], "0-3" or "all"'
        ) from None


def _parse_range(part: str, whole: str, module: str) -> range:
    first, dash, last = part.strip().partition("-")
    try:
        start = int(first)
        stop = int(last) if dash else start
    except ValueError:
        raise PlacementError(
            f"module '{module}': devices={whole!r} is no device range ({part.strip()!r} is not a number or a-b); "
            'write e.g. "0-3", "0,2,5-7" or "all"'
        ) from None
    if stop < start:
        raise PlacementError(
            f"module '{module}': devices={whole!r} runs backwards in {part.strip()!r}; write {stop}-{start}"
        )
    return range(start, stop + 1)


def format_devices(numbers: Sequence[int]) -> str:
    """Write device numbers as ranges, in their order: (0, 1, 2, 5) -> "0-2,5"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ",".join(str(each[0]) if len(each) == 1 else f"{each[0]}-{each[-1]}" for each in ranges)
