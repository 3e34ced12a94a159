"""A rendered chat with the placeholders of its media in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hetjax.data.chat.chat_rendering import RenderedChat
from hetjax.data.chat.counted import Span
from hetjax.data.modalities.prompt_order import Item


class Placeholders(NamedTuple):
    """Characters from `start` to `stop` that are `count` placeholders of one kind for a medium."""

    medium: int
    kind: str
    count: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpandedText:
    """A text to be tokenized as a whole.

    Attributes:
        text: the text, with the texts of placeholders.
        counted: what the loss counts of it.
        literal: where texts of special tokens are text.
        placeholders: where placeholders stand.
    """

    text: str
    counted: tuple[Span, ...]
    literal: tuple[tuple[int, int], ...]
    placeholders: tuple[Placeholders, ...]


def expand(rendered: RenderedChat, items: Sequence[Sequence[Item]], texts: Mapping[str, str]) -> ExpandedText:
    """Put the items of each medium in its place.

    Args:
        rendered: the chat.
        items: of each medium by number, its texts and placeholders.
        texts: the text of each placeholder by its name ("image", "image_start", ...).
    """
    pieces: list[str] = []
    placeholders: list[Placeholders] = []
    shifts: list[tuple[int, int]] = []  # (position in the text without media, by how much all behind it moves)
    length = last = 0

    def add(piece: str) -> None:
        nonlocal length
        pieces.append(piece)
        length += len(piece)

    for place in rendered.media:
        add(rendered.text[last : place.position])
        last = place.position
        for item in items[place.number]:
            if isinstance(item, str):
                add(item)
                continue
            add(texts[f"{item.kind}_start"])
            start = length
            add(texts[item.kind] * item.count)
            placeholders.append(Placeholders(place.number, item.kind, item.count, start, length))
            add(texts[f"{item.kind}_end"])
        shifts.append((place.position, length - last))
    add(rendered.text[last:])

    def moved(position: int) -> int:
        return position + max((shift for at, shift in shifts if at <= position), default=0)

    return ExpandedText(
        text="".join(pieces),
        counted=tuple(Span(moved(span.start), moved(span.stop - 1) + 1, span.weight) for span in rendered.counted),
        literal=tuple((moved(start), moved(stop - 1) + 1) for start, stop in rendered.literal),
        placeholders=tuple(placeholders),
    )
