"""Read the objects of a JSON array, or of a list within an object, by index."""

from __future__ import annotations

import codecs
import json
import mmap
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hetjax.data.reading.jsonl import JsonlSource
from hetjax.data.reading.signatures import check_signature, first_byte
from hetjax.data.reading.source import Line, Source
from hetjax.errors import DataError

_BLANK = b" \t\r\n"
_CHUNK = 1 << 14  # bytes that an element is first looked for in


class JsonArraySource:
    """The elements of the array that a JSON file is, or that stands under a key of the object that it is.

    The file is read once, an element at a time, for an index of 16 bytes an element; a lookup reads the element alone.

    Raises:
        DataError: the file is missing, of another format, no valid JSON, or has no element.
    """

    def __init__(self, path: str | Path, key: str | None = None):
        self.path = Path(path)
        self.folder = self.path.parent
        self._name = "" if key is None else f".{key}"
        starts, ends = array("q"), array("q")
        empty = f"dataset '{path}' is empty; give a JSON file whose array has an object for each sample"
        try:
            if not self.path.stat().st_size:
                raise DataError(empty)
            with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                for start, end in _elements(text, self._start(text, key), self.path):
                    starts.append(start)
                    ends.append(end)
        except OSError as error:
            raise DataError(f"dataset '{path}' cannot be read: {error.strerror}; give a readable JSON file") from error
        if not starts:
            raise DataError(empty)
        self._starts, self._ends = np.frombuffer(starts, np.int64), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Line:
        where = f"{self.path}{self._name}[{index}]"
        start, end = int(self._starts[index]), int(self._ends[index])
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return Line(text=file.read(end - start), where=where)
        except OSError as error:
            raise DataError(f"{where}: the element cannot be read: {error.strerror}") from error

    def _start(self, text: mmap.mmap, key: str | None) -> int:
        """Return the position behind the bracket that opens the array."""
        if key is not None:
            return dict(_lists(text))[key] + 1
        start = _skip(text, len(codecs.BOM_UTF8) if text[:3] == codecs.BOM_UTF8 else 0)
        if text[start : start + 1] != b"[":
            raise DataError(f"dataset '{self.path}' is no JSON: it begins with neither '[' nor '{{'")
        return start + 1


def open_json(path: str | Path, split: str | None = None) -> Source:
    """Open a .json file: an array of samples, an object that has one under a key (`split`, where it has several), or
    JSON lines under another name. Raises DataError."""
    path = Path(path)
    check_signature(path, "JSON")
    if first_byte(path) != b"{":
        return JsonArraySource(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        lists = dict(_lists(text))
    if not lists:
        return JsonlSource(path)
    if split in lists or len(lists) == 1:
        return JsonArraySource(path, split if split in lists else next(iter(lists)))
    raise DataError(f"dataset '{path}' has the lists {', '.join(lists)}; name one of them as `split`")


def _lists(text: mmap.mmap) -> Iterator[tuple[str, int]]:
    """Return name and position of each list of objects in the object that a file is; none where it is JSON lines."""
    found: list[tuple[str, int]] = []
    position = text.find(b"{") + 1
    try:
        while (position := _skip(text, position)) < len(text) and text[position : position + 1] != b"}":
            begin = position
            _, position = _value(text, begin)
            name = json.loads(text[begin:position])
            if not isinstance(name, str):
                return
            position = _skip(text, position) + 1  # the colon
            begin = _skip(text, position)
            if text[begin : begin + 1] == b"[":
                has_objects, position = _has_objects(text, begin + 1)
                found += [(name, begin)] if has_objects else []
            else:
                _, position = _value(text, begin)
            position = _skip(text, position)
            position += text[position : position + 1] == b","
    except (ValueError, RecursionError):
        return
    # What follows the object makes it the first of many: JSON lines. The keys of a sample are no names of splits.
    samples = {"messages", "conversations", "images", "videos", "audios", "tools", "history"}
    if _skip(text, position + 1) >= len(text) and not samples & {name for name, _ in found}:
        yield from found


def _has_objects(text: mmap.mmap, position: int) -> tuple[bool, int]:
    """Return whether a list has objects and nothing else, and the position behind it; only one element is in memory."""
    count, are_objects = 0, True
    while (position := _skip(text, position)) < len(text) and text[position : position + 1] != b"]":
        are_objects &= text[position : position + 1] == b"{"
        _, position = _value(text, position)
        count += 1
        position = _skip(text, position)
        position += text[position : position + 1] == b","
    if position >= len(text):
        raise ValueError("a list is not closed")
    return bool(count) and are_objects, position + 1


def _elements(text: mmap.mmap, position: int, path: Path) -> Iterator[tuple[int, int]]:
    """Return where each element of an array begins and ends."""
    number = 0
    while (position := _skip(text, position)) < len(text):
        if text[position : position + 1] == b"]":
            return
        try:
            _, end = _value(text, position)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise DataError(
                f"dataset '{path}' is no valid JSON in element {number}, at byte {position}: {reason}; repair it there"
            ) from error
        yield position, end
        number += 1
        position = _skip(text, end)
        position += text[position : position + 1] == b","
    raise DataError(f"dataset '{path}' ends within its array, after element {number - 1}; it is truncated: get it anew")


def _value(text: mmap.mmap, position: int) -> tuple[object, int]:
    """Return the JSON value at a position, its texts in Latin-1, and the position behind it."""
    # A byte is a character in Latin-1, and what structures JSON is ASCII: so positions are those of the file.
    chunk = _CHUNK
    while True:
        piece = text[position : position + chunk].decode("latin-1")
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(piece)
        except json.JSONDecodeError:
            if position + chunk >= len(text):
                raise
        else:
            if end < len(piece) or position + chunk >= len(text):  # a number at the very end may go on
                return value, position + end
        chunk *= 4


def _skip(text: mmap.mmap, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position
