"""What a compiled program sends between devices."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from hetjax.compilation.hlo.calls import CallCounts
from hetjax.compilation.hlo.device_groups import Group, axes_along, groups_of, pairs_of
from hetjax.compilation.hlo.layers import layer_of, op_name_of
from hetjax.compilation.hlo.overlap import overlapping
from hetjax.compilation.hlo.program_text import ProgramText, read_program
from hetjax.compilation.hlo.shapes import Shape

KINDS = (
    *("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast"),
    "ragged-all-to-all",
)

_DEVICES = re.compile(r"\b(?:replica_count|num_partitions)=(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a compiled program.

    Attributes:
        kind: one of `KINDS`.
        results: the arrays that it gives on one device.
        pairs: (source, target) of a collective-permute, by place in the program's mesh.
        members: the groups of devices that take part, for the other kinds.
        times: how often one call of the program does it, loops counted.
        overlaps: whether devices compute something between its start and its end.
        op_name: the stack of JAX names under which it was traced.
    """

    kind: str
    results: tuple[Shape, ...]
    pairs: tuple[tuple[int, int], ...]
    members: tuple[Group, ...]
    times: int
    overlaps: bool
    op_name: str

    @property
    def result_bytes(self) -> int:
        """Size of its results on one device."""
        return sum(shape.bytes for shape in self.results)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of its results, each once, as XLA names them."""
        return tuple(dict.fromkeys(shape.dtype for shape in self.results))

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self.members)

    @property
    def group_size(self) -> int:
        """The number of devices in each group."""
        return len(self.members[0]) if self.members else 0

    @property
    def layer(self) -> str:
        """The named scopes under which it was traced."""
        return layer_of(self.op_name)

    @property
    def bytes_received(self) -> int:
        """Bytes that all its devices together receive from others each time; an all-reduce counts as its two halves.

        A ragged all-to-all counts as if its result were full.
        """
        peers, devices = self.group_size - 1, self.groups * self.group_size
        match self.kind:
            case "collective-permute":
                return self.result_bytes * sum(source != target for source, target in self.pairs)
            case "all-gather" | "all-to-all" | "ragged-all-to-all":
                return self.result_bytes * peers * devices // self.group_size
            case "reduce-scatter":
                return self.result_bytes * peers * devices
            case "all-reduce":
                return 2 * self.result_bytes * peers * devices // self.group_size
            case "collective-broadcast":
                return self.result_bytes * peers * self.groups
        raise AssertionError(self.kind)

    def axes(self, mesh_axes: Mapping[str, int]) -> tuple[str, ...]:
        """Return the axes that it runs along, of the mesh that its program was compiled for: sizes by name, in order.

        Empty where no device hears from another.
        """
        return axes_along(self.pairs or self.members, mesh_axes)


def collectives(text: str | ProgramText, *, loop_bound: int | None = None) -> list[Collective]:
    """Return the collectives of a compiled program, each once, whether in a loop or not, of conditionals all branches.

    Args:
        text: the program's text, or what `read_program` made of it.
        loop_bound: iterations of loops whose length the text does not say.

    Raises ValueError when the text does not say which devices take part in one, or, without a `loop_bound`, how often
    a loop iterates.
    """
    program = read_program(text) if isinstance(text, str) else text
    devices = math.prod(int(count) for count in _DEVICES.findall(program.heading))
    counts = CallCounts(program, loop_bound=loop_bound)
    found = []
    for computation in program.computations.values():
        for instruction in computation.instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            permute = kind == "collective-permute"
            found.append(
                Collective(
                    kind=kind,
                    results=instruction.results,
                    pairs=pairs_of(instruction.attributes) if permute else (),
                    members=() if permute else groups_of(instruction.attributes, devices),
                    times=counts(computation.name),
                    overlaps=overlapping(program, counts, computation, instruction),
                    op_name=op_name_of(program, computation, instruction),
                )
            )
    return found


def bytes_received(text: str | ProgramText) -> int:
    """Return the bytes that the devices of a program together receive from others in one call."""
    return sum(collective.bytes_received * collective.times for collective in collectives(text))
