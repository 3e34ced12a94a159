"""Render a chat to pieces of text and media in their order, and mark the text that an assistant says.

The template runs once over whole messages. What must be found again behind it travels in noncharacters of Unicode: the
place of each image, video and audio, the ends of each answer, and a break inside whatever a user wrote that
spells a special token, so that it stays text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

from hetjax.data.chat.messages import Chat, Turn
from hetjax.data.chat.special_tokens import THOUGHTS
from hetjax.data.chat.template import SAID_END, SAID_START, ChatTemplate
from hetjax.data.modalities import placeholder_texts
from hetjax.errors import DataError

_MEDIUM, _BREAK = "\ufdd0", "\ufdd3"
_ANSWER_START, _ANSWER_END = "\ufdd1", "\ufdd2"
_OURS = re.compile("[\ufdd0-\ufdef]")
_MARK = re.compile(f"({_MEDIUM}[0-9]+{_MEDIUM}|[\ufdd1-\ufdd5])")

Protect = Callable[[str, Turn], str]
"""Breaks the special tokens that a text of a turn spells."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Text, or the medium (image, video, audio, ...) of that number in the chat.

    `said` is whether an assistant says it; `ends_answer` whether a special token at its beginning ends what one said.
    """

    text: str = ""
    medium: int | None = None
    said: bool = False
    ends_answer: bool = False


def render_chat(
    chat: Chat, template: ChatTemplate, *, specials: Iterable[str], training: bool, **options: object
) -> list[Piece]:
    """Return the pieces of a chat, of which each is to be tokenized by itself.

    In `training` answers are marked and nothing follows them; else the text asks for the next answer.

    Raises:
        DataError: the template refuses the messages, or leaves out a medium or part of an answer.
    """
    protect = _protector(specials)
    try:
        text = _rendered(chat, template, protect, training, options)
    except DataError as error:
        raise DataError(f"{chat.where}: {error}") from error
    pieces = _pieces(text)
    if training and not any(piece.said for piece in pieces):
        raise DataError(f"{chat.where}: no assistant message, so there is nothing to learn; add one or remove the line")
    return pieces


def _rendered(
    chat: Chat, template: ChatTemplate, protect: Protect, training: bool, options: Mapping[str, object]
) -> str:
    marks = training and not template.marks_answers
    answers = sum(turn.role == "assistant" for turn in chat.turns) if marks else 0
    wanted = [str(i) for i in range(len(chat.media))]
    problem = None
    for as_parts in (False, True):  # some templates take texts, some lists of parts
        messages = _messages(chat, protect, marks, as_parts)
        try:
            text = template.render(messages, add_generation_prompt=not training, **options)
        except DataError as error:
            problem = problem or error
            continue
        shown = re.findall(f"{_MEDIUM}([0-9]+){_MEDIUM}", text)
        ends = text.count(_ANSWER_END)
        if shown == wanted and text.count(_ANSWER_START) == ends == answers:
            return text
        problem = problem or DataError(
            f"the chat template shows {len(shown)} of {len(wanted)} images, videos and audios, and {ends} of {answers} "
            "answers to be learned; give template options that keep all of them, in order, or a template with "
            "{% generation %} blocks"
        )
    raise problem


def _messages(chat: Chat, protect: Protect, marks: bool, as_parts: bool) -> list[dict[str, object]]:
    messages, medium = [], 0
    for turn in chat.turns:
        texts = []
        for part in turn.parts:
            if part.kind == "text":
                texts.append(protect(part.value, turn))
            else:
                texts.append(f"{_MEDIUM}{medium}{_MEDIUM}")
                medium += 1
        if marks and turn.role == "assistant":
            said = "".join(texts)
            inner = said.strip()
            # Templates strip white space at the ends of a message, which a mark outside of it would prevent.
            before, _, after = said.partition(inner) if inner else (said, "", "")
            texts = [before + _ANSWER_START + inner + _ANSWER_END + after]
        content = [{"type": "text", "text": text} for text in texts] if as_parts else "".join(texts)
        messages.append({**turn.others, "role": turn.role, "content": content})
    return messages


def _protector(specials: Iterable[str]) -> Protect:
    """Return the function that keeps texts that people wrote from becoming special tokens."""
    words = sorted({*specials, *placeholder_texts().values()}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, words)))

    def protect(text: str, turn: Turn) -> str:
        def broken(found: re.Match) -> str:
            word = found.group()
            thought = turn.role == "assistant" and word in THOUGHTS
            return word if thought else word[0] + _BREAK + word[1:]

        return pattern.sub(broken, _OURS.sub("", text))

    return protect


def _pieces(text: str) -> list[Piece]:
    pieces: list[Piece] = []
    said = ended = False
    for part in _MARK.split(text):
        if part.startswith(_MEDIUM):
            pieces.append(Piece(medium=int(part.strip(_MEDIUM)), said=said))
        elif part in (_ANSWER_START, SAID_START):
            said = True
        elif part in (_ANSWER_END, SAID_END):
            said, ended = False, part == _ANSWER_END
            continue
        elif part and part != _BREAK:
            pieces.append(Piece(text=part, said=said, ends_answer=ended))
        else:
            continue
        ended = False
    return pieces
