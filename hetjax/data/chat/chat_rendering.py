"""Render a chat to one text, with the places of its media and what the loss counts of it.

The template runs over whole messages; what must be found again behind it travels in marks (`hetjax.data.chat.marks`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from hetjax.data.chat.counted import Span, counted_spans, find_frame
from hetjax.data.chat.marks import MarkedText, Place
from hetjax.data.chat.message_keys import check_message_keys
from hetjax.data.chat.messages import Chat
from hetjax.data.chat.shown import check_shown
from hetjax.data.chat.template import ChatTemplate, Frame, RefusedError
from hetjax.data.chat.template_messages import LiteralTexts, TemplateInput, flaws, input_of
from hetjax.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderedChat:
    """A chat as a text.

    Attributes:
        text: the text, without media.
        counted: what the loss counts, in the order of the text.
        media: where each image, video and audio belongs.
        literal: from where to where the text of a special token stands that a person wrote, and that stays text.
    """

    text: str
    counted: tuple[Span, ...]
    media: tuple[Place, ...]
    literal: tuple[tuple[int, int], ...]


class _Whole(NamedTuple):
    """A rendered chat of which nothing was left out, and where it shows something of which message."""

    marked: MarkedText
    shown: list[Place]


def render_chat(
    chat: Chat, template: ChatTemplate, *, specials: Iterable[str], training: bool, ending: str = "", **options: object
) -> RenderedChat:
    """Return the text of a chat, which is to be tokenized as a whole.

    In `training` the text ends behind the last turn; else it asks for the next answer, and nothing is counted. `ending`
    is what `ending_of` gives: it is put behind a last answer, too.

    Raises:
        DataError: the template refuses the messages or leaves out some of it, or nothing can be counted.
    """
    template, literal = template.for_chat(chat.tools), LiteralTexts.of(specials)

    def render(given: TemplateInput, asks: bool = not training) -> MarkedText:
        tools = {} if given.tools is None else {"tools": given.tools}
        return template.render(given.messages, add_generation_prompt=asks, **{**options, **tools})

    try:
        for number, turn in enumerate(chat.turns):
            check_message_keys(turn.others, number, template.source)
        found, in_parts = _plainest(chat, literal, render)
        marked = found.marked
        counted: Sequence[Span] = ()
        if training:
            counted = counted_spans(
                chat, marked, found.shown, template.marks_answers, _frame_of(template, options, in_parts), ending
            )
    except DataError as error:
        raise DataError(f"{chat.where}: {error}") from error
    text = marked.text
    if training and ending and chat.turns[-1].role == "assistant":
        text += ending
        if chat.turns[-1].weight:
            counted = [*counted[:-1], counted[-1]._replace(stop=len(text))]
    return RenderedChat(
        text=text,
        counted=tuple(counted),
        media=marked.media,
        literal=tuple(literal.spans(marked.text, marked.literal)),
    )


def end_mark(template: ChatTemplate, **options: object) -> str:
    """Return what a template writes behind an answer; nothing where that cannot be seen."""
    for in_parts in (False, True):
        try:
            return _frame_of(template, options, in_parts)().end
        except DataError:
            continue
    return ""


def ending_of(template: ChatTemplate, stops: Sequence[str], **options: object) -> str:
    """Return the special token that ends an answer where the template writes no end mark; nothing where it does.

    That is what begins the next question, if generation stops there as GLM's does, else the first of `stops`, at which
    generation stops. A template with `generation` blocks says itself what is learned.
    """
    if template.marks_answers or end_mark(template, **options).strip() or not stops:
        return ""
    asked, answered = {"role": "user", "content": "?"}, {"role": "assistant", "content": "\u2042"}
    for in_parts in (False, True):
        chat = [asked, answered, asked]
        if in_parts:
            chat = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in chat]
        try:
            _, found, behind = template.render(chat, add_generation_prompt=False, **options).text.partition("\u2042")
        except DataError:
            continue
        if found:
            return next((stop for stop in stops if behind.lstrip().startswith(stop)), stops[0])
    return ""


def _plainest(chat: Chat, literal: LiteralTexts, render: Callable[[TemplateInput], MarkedText]) -> tuple[_Whole, bool]:
    """Return the text of the first way of giving the chat to the template that it takes and shows whole.

    The second of the pair is whether contents were lists of parts.

    Raises DataError where there is none: what is wrong with the first.
    """
    problems = []
    for as_parts in (False, True):  # some templates take texts, some lists of parts
        found: _Whole | None = None
        for repaired in (False, True):
            try:
                made = _whole(chat, input_of(chat, literal, as_parts=as_parts, repaired=repaired), render)
            except DataError as error:
                problems.append(error)
                continue
            if found is None or flaws(chat, made.marked.text) < flaws(chat, found.marked.text):
                found = made
            if not flaws(chat, found.marked.text):
                break
        if found is not None:
            return found, as_parts
    # What is wrong with the repaired texts says more than that the template does not take them unrepaired.
    raise next((each for each in problems[:2] if not isinstance(each, RefusedError)), problems[0])


def _whole(chat: Chat, given: TemplateInput, render: Callable[[TemplateInput], MarkedText]) -> _Whole:
    """Return what the template makes of a chat. Raises DataError where it leaves out some of it."""
    marked, wanted = render(given), list(range(len(chat.media)))
    shown = [place.number for place in marked.media]
    if shown != wanted:
        raise DataError(
            f"the chat template shows {len(shown)} of {len(wanted)} images, videos and audios; give template "
            "options that keep all of them, in order, or another template"
        )
    return _Whole(marked, check_shown(given, marked, render))


def _frame_of(template: ChatTemplate, options: dict[str, object], in_parts: bool) -> Callable[[], Frame]:
    """Return the function that finds what the template writes around answers; it looks only once."""

    def find() -> Frame:
        key = repr((in_parts, options))
        if key not in template.frames:
            template.frames[key] = find_frame(render)
        return template.frames[key]

    def render(messages: Sequence[dict[str, object]], asks: bool) -> MarkedText:
        if in_parts:
            messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        return template.render(messages, add_generation_prompt=asks, **options)

    return find
