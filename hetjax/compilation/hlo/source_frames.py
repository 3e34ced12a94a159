"""The lines of Python that the instructions of a compiled program come from, out of the tables ahead of its text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_QUOTED = re.compile(r'(\d+) "(.*)"$')
_NUMBERS = re.compile(r"(\w+)=(\d+)")


class Frame(NamedTuple):
    """A call on the way to an instruction: the function's qualified name, its file, and the line in it."""

    function: str
    file: str
    line: int


@dataclasses.dataclass(frozen=True)
class SourceFrames:
    """Stack frames by their number: each with the number of its caller's frame, or 0."""

    frames: Mapping[int, tuple[Frame, int]]

    @classmethod
    def read(cls, lines: Iterable[str]) -> SourceFrames:
        """Read the tables FileNames, FunctionNames, FileLocations and StackFrames; any of them may be missing."""
        names: dict[str, dict[int, str]] = {"FileNames": {}, "FunctionNames": {}}
        numbers: dict[str, dict[int, dict[str, int]]] = {"FileLocations": {}, "StackFrames": {}}
        table = ""
        for line in lines:
            number, _, entry = line.partition(" ")
            if line in names or line in numbers:
                table = line
            elif table in names and (quoted := _QUOTED.match(line)):
                names[table][int(quoted[1])] = quoted[2]
            elif table in numbers and number.isdigit():
                numbers[table][int(number)] = {key: int(value) for key, value in _NUMBERS.findall(entry)}
        found = {}
        for number, frame in numbers["StackFrames"].items():
            at = numbers["FileLocations"].get(frame["file_location_id"])
            if at is not None:
                function = names["FunctionNames"].get(at["function_name_id"], "")
                file = names["FileNames"].get(at["file_name_id"], "")
                # XLA writes a caller's number plus one, so that the first frame's caller is 1.
                found[number] = Frame(function, file, at["line"]), frame["parent_frame_id"] - 1
        return cls(found)

    def stack(self, number: int) -> tuple[Frame, ...]:
        """Return the frames of an instruction, the innermost first; none for a number that is not in the tables."""
        stack = []
        while number in self.frames:
            frame, caller = self.frames[number]
            stack.append(frame)
            number = caller if caller < number else 0
        return tuple(stack)
