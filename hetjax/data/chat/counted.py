"""Find the parts of a rendered text that the loss counts: all that assistants contribute, by their place in the text.

A template with `{% generation %}` says it. Of another one a loop writes each turn, so that it is known which
characters are whose (`hetjax.data.chat.template_environment.mark_loops`). A turn begins with its header, which the
template itself also writes to ask for an answer; all behind it counts, up to the end mark, but for white space after
that. How header and end mark read is seen in a short chat that is rendered once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hetjax.data.chat.marks import MarkedText, Place, Segment
from hetjax.data.chat.messages import Chat
from hetjax.data.chat.template import Frame
from hetjax.data.chat.tokenizer import THOUGHTS
from hetjax.errors import DataError

RenderMessages = Callable[[Sequence[dict[str, object]], bool], MarkedText]
"""Renders messages; the second argument is whether the next answer is asked for."""

_QUESTION, _ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": "\u2042"}
_ADVICE = "give a template with {% generation %} around what assistants say (processor.chat_template)"


class Span(NamedTuple):
    """Characters from `start` to `stop`, and what each of their tokens counts in the loss."""

    start: int
    stop: int
    weight: float


def find_frame(render: RenderMessages) -> Frame:
    """Return what a template writes around an answer. Raises DataError where it does not write turns by a loop."""
    answered = render([_QUESTION, _ANSWER], False)
    written = "".join(answered.text[each.start : each.stop] for each in answered.segments if each.turn == 1)
    before, found, end = written.partition(_ANSWER["content"])
    if not found:
        raise DataError(f"it cannot be seen which part of its text the chat template writes for an answer; {_ADVICE}")
    header = _shared(before, _asks(render) or before)
    for thought in THOUGHTS:  # what a template asks to be thought is the assistant's all the same
        header = header.partition(thought)[0]
    return Frame(header, end)


def _asks(render: RenderMessages) -> str:
    """Return what a template writes to ask for an answer."""
    asked, left = render([_QUESTION], True), render([_QUESTION], False)
    turns = left.text[: left.looped]
    return asked.text[len(turns) :] if asked.text.startswith(turns) else asked.text[asked.looped :]


def counted_spans(
    chat: Chat, rendered: MarkedText, shown: Sequence[Place], marks_answers: bool, frame: Callable[[], Frame]
) -> list[Span]:
    """Return what the loss counts of a rendered chat, in the order of the text.

    `shown` says where the text shows something of which message.

    Raises DataError where nothing of an assistant's turn can be counted, or no turn counts.
    """
    turns = [number for number, turn in enumerate(chat.turns) if turn.role == "assistant"]
    if not turns:
        raise DataError("no assistant message, so there is nothing to learn; add one or remove the line")
    if marks_answers:
        found = _in_blocks(chat, rendered, turns)
    else:
        found = [_span(rendered, turn, chat.turns[turn].weight, frame()) for turn in turns]
    for position, number in shown:
        if number not in turns and any(span.start <= position < span.stop for span in found):
            raise DataError(
                f"{'the tools' if number < 0 else f'message {number}'}: the chat template writes it within the turn of "
                f"an assistant, who does not say it; {_ADVICE}"
            )
    counted = [span for span in found if span.weight]
    if not counted:
        raise DataError("all assistant messages have weight 0, so there is nothing to learn; remove the line")
    return counted


def _in_blocks(chat: Chat, rendered: MarkedText, turns: Sequence[int]) -> list[Span]:
    """Return what the `generation` blocks of a template say."""
    blocks = [block for block in rendered.said if block.stop > block.start]
    weights = {chat.turns[turn].weight for turn in turns}
    if any(block.turn not in turns for block in blocks):  # they do not stand in a loop over messages
        if len(weights) > 1:
            raise DataError(
                "its assistant messages have unlike weights, but the {% generation %} blocks of the chat template do "
                "not stand in a loop over messages, so that it cannot be seen whose they are; remove the weights"
            )
        return [Span(block.start, block.stop, *weights) for block in blocks]
    for turn in turns:
        if chat.turns[turn].weight and not any(block.turn == turn for block in blocks):
            raise DataError(
                f"message {turn}: nothing of it is in a {{% generation %}} block of the chat template; repair the "
                "template, or give the message the weight 0"
            )
    return [Span(block.start, block.stop, chat.turns[block.turn].weight) for block in blocks]


def _span(rendered: MarkedText, turn: int, weight: float, frame: Frame) -> Span:
    """Return what a turn contributes to a text."""
    own = _written(rendered, turn)
    if own is None:
        raise DataError(f"message {turn}: the chat template writes nothing for it; remove it, or {_ADVICE}")
    text = rendered.text[own.start : own.stop]
    common = _shared(text, frame.header)
    if common.strip() and common != frame.header:
        raise DataError(
            f"message {turn}: it cannot be seen where its answer begins: it reads {text[:40]!r}, but the chat template "
            f"begins answers with {frame.header!r}; {_ADVICE}"
        )
    spare = len(frame.end) - len(frame.end.rstrip()) if frame.end.strip() else 0
    stop = own.stop - spare if text.endswith(frame.end) else own.start + len(text.rstrip())
    start = own.start + len(common)
    if stop <= start:
        raise DataError(f"message {turn}: it is empty, and the chat template ends it by nothing; remove it")
    return Span(start, stop, weight)


def _written(rendered: MarkedText, turn: int) -> Segment | None:
    """Return the segments of one turn as one, white space that other loops wrote left out."""
    segments = [each for each in rendered.segments if rendered.text[each.start : each.stop].strip()]
    own = [number for number, each in enumerate(segments) if each.turn == turn]
    if not own:
        return None
    if own != list(range(own[0], own[-1] + 1)):
        raise DataError(f"message {turn}: the chat template writes it in several places; {_ADVICE}")
    return Segment(turn, segments[own[0]].start, segments[own[-1]].stop)


def _shared(one: str, other: str) -> str:
    """Return what two texts begin with."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return one[: sum(1 for _ in same)]
