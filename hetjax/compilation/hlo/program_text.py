"""The text of a compiled program taken apart: computations, their instructions, and where these come from."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from hetjax.compilation.hlo.shapes import Shape, parts_of, shapes_in
from hetjax.compilation.hlo.source_frames import SourceFrames

_HEADING = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(
    r"\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<result>\(.*?\)|\S+)\s+(?P<opcode>[a-z][\w\-]*)\("
)
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Instruction(NamedTuple):
    """One line of a computation, `%name = result opcode(%operands), attributes, metadata, backend_config`.

    Attributes:
        name, opcode: as written, without the percent sign.
        result: its shape as written.
        operands: names of the instructions of the same computation that it reads.
        attributes: what follows its operands, up to metadata and backend_config.
        metadata, backend_config: these two, unread; empty where the line has none.
        is_root: whether its result is that of its computation.
    """

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    attributes: str
    metadata: str
    backend_config: str
    is_root: bool

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of its result."""
        return shapes_in(self.result)

    @property
    def results(self) -> tuple[Shape, ...]:
        """The arrays of its result that are not its operands: of an asynchronous start those that its end hands on."""
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            # (operands, results, and what the backend adds), but of a copy (result, operand, ...).
            parts = parts_of(self.result)
            if len(parts) > 1:
                return shapes_in(parts[0 if self.opcode == "copy-start" else 1])
        return self.shapes

    @property
    def op_name(self) -> str:
        """The stack of JAX names under which it was traced, with the primitive's name last; empty where unknown."""
        found = _OP_NAME.search(self.metadata)
        return found[1].replace("\\'", "'") if found else ""

    @property
    def frame(self) -> int:
        """The number of its stack frame in the text's tables; 0 where unknown."""
        found = _FRAME.search(self.metadata)
        return int(found[1]) if found else 0

    @property
    def custom_call_target(self) -> str:
        """What a custom call calls; empty for all others."""
        found = _TARGET.search(self.attributes) if self.opcode == "custom-call" else None
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program: its instructions, in a scheduled program in the order in which they are dispatched."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Its instructions by name."""
        return {each.name: each for each in self.instructions}

    @functools.cached_property
    def places(self) -> Mapping[str, int]:
        """The place of each instruction among them, by name."""
        return {each.name: place for place, each in enumerate(self.instructions)}

    @property
    def root(self) -> Instruction:
        """The instruction that gives its result."""
        return next((each for each in reversed(self.instructions) if each.is_root), self.instructions[-1])

    def operands(self, instruction: Instruction) -> tuple[Instruction, ...]:
        """The instructions that one of them reads."""
        return tuple(self.by_name[name] for name in instruction.operands)


@dataclasses.dataclass(frozen=True)
class ProgramText:
    """A compiled program as its text says it.

    Attributes:
        heading: its first line, with the number of partitions.
        computations: by name, as printed.
        entry: the name of the computation that a call runs.
        frames: the lines of Python that instructions come from.
    """

    heading: str
    computations: Mapping[str, Computation]
    entry: str
    frames: SourceFrames


def read_program(text: str) -> ProgramText:
    """Take apart the text of a compiled program, as `jax.stages.Compiled.as_text` gives it, for CPU, GPU or TPU.

    Lines outside all computations are an unnamed one, the entry of a text that has no other. Takes time linear in the
    length of the text.
    """
    heading, _, _ = text.partition("\n")
    computations: dict[str, list[Instruction]] = {"": []}
    tables: list[str] = []
    current, entry = computations[""], ""
    for line in text.split("\n"):
        if line.endswith("{") and (found := _HEADING.match(line)):
            current = computations.setdefault(found["name"], [])
            entry = found["name"] if found["entry"] else entry
        elif " = " in line and (instruction := _read_instruction(line)):
            current.append(instruction)
        elif len(computations) == 1:
            tables.append(line)
    if not computations[""]:
        del computations[""]
    read = {name: Computation(name, tuple(found)) for name, found in computations.items()}
    return ProgramText(heading, read, entry, SourceFrames.read(tables))


def _read_instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    end = _end_of_operands(line, found.end())
    operands = line[found.end() : end]
    rest, _, backend_config = line[end + 1 :].partition(", backend_config=")
    attributes, _, metadata = rest.partition(", metadata={")
    return Instruction(
        name=found["name"],
        opcode=found["opcode"],
        result=found["result"],
        operands=tuple(_OPERAND.findall(operands)) if "%" in operands else (),
        attributes=attributes,
        metadata=metadata,
        backend_config=backend_config,
        is_root=found["root"] is not None,
    )


def _end_of_operands(line: str, start: int) -> int:
    """Return the place of the parenthesis that closes the one before `start`."""
    end = line.find(")", start)
    opened = line.count("(", start, end)
    while opened and end != -1:
        following = line.find(")", end + 1)
        opened += line.count("(", end, following) - 1
        end = following
    return end if end != -1 else len(line)
