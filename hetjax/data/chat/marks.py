"""Marks in a text on its way through a chat template: noncharacters of Unicode, which a template takes for letters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from hetjax.errors import DataError

MEDIUM = "\ufdd0"  # around the number of an image, video or audio, in its place
LITERAL = "\ufdd1"  # before a special token's text that a person wrote, which stays text
TURN = "\ufdd2"  # around the number of the message whose turn a loop of the template has come to
LOOP_START, LOOP_END = "\ufdd3", "\ufdd4"
SAID_START, SAID_END = "\ufdd5", "\ufdd6"  # around what a `generation` block says
FIELD = "\ufdd7"  # around the number of a field, inside of its text
ALIAS = "\ufdd8"  # before the character that stands for a special token

_RESERVED = re.compile("[\ufdd0-\ufdef]")
_MARK = re.compile(f"([{MEDIUM}{TURN}{FIELD}])([0-9]+)\\1|[{LITERAL}{LOOP_START}{LOOP_END}{SAID_START}{SAID_END}]")


def check_unmarked(text: str) -> str:
    """Return a text of a person. Raises DataError where it has what a mark has, or half a surrogate pair."""
    found = _RESERVED.search(text)
    if found:
        raise DataError(f"a text has the noncharacter U+{ord(found.group()):04X}, which no text may have; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text has half of a surrogate pair, \\u{ord(text[error.start]):04x}, which is no character; repair it"
        ) from error
    return text


class Segment(NamedTuple):
    """Characters from `start` to `stop` that the template writes for the message `turn`."""

    turn: int
    start: int
    stop: int


class Place(NamedTuple):
    """The position of medium `number` in a text."""

    position: int
    number: int


class MarkedText(NamedTuple):
    """A rendered text without its marks, and what they said.

    Attributes:
        text: the text.
        segments: what was written for which message, in the order of the text.
        said: what `generation` blocks said, and for which message (-1 for none).
        media: where media stand.
        literal: where a special token's text stands that stays text.
        fields: where each field that the text shows stands, by its number.
        looped: where the last loop over messages ends.
    """

    text: str
    segments: tuple[Segment, ...]
    said: tuple[Segment, ...]
    media: tuple[Place, ...]
    literal: tuple[int, ...]
    fields: Mapping[int, int]
    looped: int


def read_marks(rendered: str) -> MarkedText:
    """Return a rendered text without its marks, and what they said."""
    pieces: list[str] = []
    segments: list[Segment] = []
    said: list[Segment] = []
    media: list[Place] = []
    literal: list[int] = []
    fields: dict[int, int] = {}
    loops: list[int | None] = []  # the message of each loop that is open, the innermost last
    position = last = looped = 0
    said_from: int | None = None

    def turn() -> int:
        return next((number for number in reversed(loops) if number is not None), -1)

    def add(text: str) -> None:
        nonlocal position
        number = turn()
        if text and number >= 0:
            if segments and segments[-1].turn == number and segments[-1].stop == position:
                segments[-1] = segments[-1]._replace(stop=position + len(text))
            else:
                segments.append(Segment(number, position, position + len(text)))
        pieces.append(text)
        position += len(text)

    for found in _MARK.finditer(rendered):
        add(rendered[last : found.start()])
        last = found.end()
        mark, number = found.group()[0], found.group(2)
        if mark == MEDIUM:
            media.append(Place(position, int(number)))
        elif mark == FIELD:
            fields.setdefault(int(number), position)
        elif mark == LITERAL:
            literal.append(position)
        elif mark == LOOP_START:
            loops.append(None)
        elif mark == TURN and loops:
            loops[-1] = int(number)
        elif mark == LOOP_END and loops:
            looped = position if loops.pop() is not None else looped
        elif mark == SAID_START:
            said_from = position
        elif mark == SAID_END and said_from is not None:
            said.append(Segment(turn(), said_from, position))
            said_from = None
    add(rendered[last:])
    return MarkedText("".join(pieces), tuple(segments), tuple(said), tuple(media), tuple(literal), fields, looped)
