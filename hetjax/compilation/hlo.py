"""Reads from the text of a compiled program what it sends between devices."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")

_OPERATION = re.compile(rf"=\s*(?P<result>\(.*?\)|\S+)\s+(?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_DEVICES = re.compile(r"\b(?:replica_count|num_partitions)=(\d+)")
_HEADING = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
    r"\b(?:body|condition|calls|to_apply|true_computation|false_computation|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
        kind: one of `KINDS`.
        result_bytes: size of its result on one device.
        pairs: (source, target) of a collective-permute.
        groups, group_size: how many groups of how many devices take part, for the other kinds.
        times: how often one call of the program does it, loops counted.
    """

    kind: str
    result_bytes: int
    pairs: tuple[tuple[int, int], ...]
    groups: int
    group_size: int
    times: int = 1

    @property
    def bytes_received(self) -> int:
        """Bytes that all its devices together receive from others each time; an all-reduce counts as its two halves."""
        peers, devices = self.group_size - 1, self.groups * self.group_size
        match self.kind:
            case "collective-permute":
                return self.result_bytes * sum(source != target for source, target in self.pairs)
            case "all-gather" | "all-to-all":
                return self.result_bytes * peers * devices // self.group_size
            case "reduce-scatter":
                return self.result_bytes * peers * devices
            case "all-reduce":
                return 2 * self.result_bytes * peers * devices // self.group_size
            case "collective-broadcast":
                return self.result_bytes * peers * self.groups
        raise AssertionError(self.kind)


def collectives(text: str) -> list[Collective]:
    """Return the collectives in the text of a compiled program, each once, whether in a loop or not.

    Raises ValueError when the text does not say which devices take part in one, or how often a loop iterates.
    """
    devices = math.prod(int(count) for count in _DEVICES.findall(text.partition("\n")[0]))
    found = []
    calls = _calls(text)
    computation = ""
    for line in text.splitlines():
        heading = _HEADING.match(line)
        computation = heading["name"] if heading else computation
        match = _OPERATION.search(line)
        if match is None:
            continue
        result = match["result"]
        if match["start"] and match["kind"] != "all-reduce":
            # An asynchronous start gives (operands, results, and what its backend adds); an all-reduce's only results.
            parts = _parts(result)
            result = parts[1] if len(parts) > 1 else result
        permute = match["kind"] == "collective-permute"
        groups, size = (0, 0) if permute else _groups(line, devices)
        found.append(
            Collective(
                kind=match["kind"],
                result_bytes=sum(_array_bytes(result)),
                pairs=_pairs(line) if permute else (),
                groups=groups,
                group_size=size,
                times=calls(computation),
            )
        )
    return found


def bytes_received(text: str) -> int:
    """Return the bytes that the devices of a program together receive from others in one call."""
    return sum(collective.bytes_received * collective.times for collective in collectives(text))


def _calls(text: str) -> Callable[[str], int]:
    """Return how often each computation is called: as often as its callers, a loop's body once an iteration."""
    callers: dict[str, list[tuple[str, int]]] = {}
    computation, entry = "", ""
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading:
            computation = heading["name"]
            entry = computation if heading["entry"] else entry
            continue
        body, count = _BODY.search(line), _TRIP_COUNT.search(line)
        for called in (name for names in _CALLED.findall(line) for name in re.findall(r"[\w.\-]+", names)):
            times = 1
            if body is not None and called == body[1]:
                times = int(count[1]) if count else 0
            callers.setdefault(called, []).append((computation, times))

    @functools.cache
    def calls(name: str) -> int:
        if name == entry:
            return 1
        times = [calls(caller) * count for caller, count in callers.get(name, ())]
        if not times or not all(times):
            raise ValueError(f"the text does not say how often the computation or loop with the body {name} iterates")
        return sum(times)

    return calls


def _parts(result: str) -> list[str]:
    """Return the parts of `(a, (b, c), d)`: commas between brackets of any kind do not count."""
    parts, depth = [""], 0
    for letter in result[1:-1] if result.startswith("(") else result:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _array_bytes(result: str) -> list[int]:
    sizes = []
    for dtype, dims in _ARRAY.findall(result):
        bits = 8 if dtype == "pred" else int(_BITS.search(dtype)[0])
        sizes.append(math.prod(int(size) for size in dims.split(",") if size) * bits // 8)
    return sizes


def _pairs(line: str) -> tuple[tuple[int, int], ...]:
    listed = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    found = re.findall(r"\{(\d+),(\d+)", listed[1] + "}") if listed else []
    return tuple((int(source), int(target)) for source, target in found)


def _groups(line: str, devices: int) -> tuple[int, int]:
    """Return (number of groups, devices in each) in any of the ways in which XLA writes them."""
    if "replica_groups={}" in line:
        return 1, devices
    for pattern, read in _GROUPS:
        match = pattern.search(line)
        if match is not None:
            return read(match)
    raise ValueError(f"no replica groups are known in: {line.strip()[:300]}")


def _listed(match: re.Match) -> tuple[int, int]:
    groups = re.findall(r"\{([\d,]+)\}", match[1])
    sizes = {len(group.split(",")) for group in groups}
    if len(sizes) > 1:
        raise ValueError(f"replica groups of unlike sizes: {match[1]}")
    return len(groups), sizes.pop()


def _counted(match: re.Match) -> tuple[int, int]:
    return int(match[1]), int(match[2])


def _of_mesh(match: re.Match) -> tuple[int, int]:
    """`mesh['a'=4,'b'=2] {'b'}`; a part of an axis is written `'a':(1)2`."""
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
    size = 1
    for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2]):
        size *= int(part or sizes[name])
    return math.prod(map(int, sizes.values())) // size, size


_GROUPS: tuple[tuple[re.Pattern, Callable[[re.Match], tuple[int, int]]], ...] = (
    (re.compile(r"replica_groups=(\{\{[\d,{}]+\}\})"), _listed),
    (re.compile(r"replica_groups=\[(\d+),(\d+)\]<="), _counted),
    (re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}"), _of_mesh),
)
