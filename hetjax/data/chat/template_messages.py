"""Make of a chat the messages that a chat template reads, with marks for what must be found again behind it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from hetjax.data.chat.marks import LITERAL, MEDIUM
from hetjax.data.chat.message_keys import REASONING_KEYS
from hetjax.data.chat.messages import Chat, Turn
from hetjax.data.chat.tokenizer import THOUGHTS
from hetjax.data.modalities import placeholder_texts

Message = dict[str, object]


class TemplateInput(NamedTuple):
    """What a template gets of a chat."""

    messages: list[Message]
    tools: list[object] | None


class LiteralTexts:
    """The texts of special tokens, which stay text where a person wrote them."""

    def __init__(self, words: Iterable[str]):
        self._pattern = re.compile("|".join(map(re.escape, sorted({*words} - {""}, key=len, reverse=True))))

    @staticmethod
    def of(specials: Iterable[str]) -> LiteralTexts:
        """Return them for the special tokens of a tokenizer, with those of placeholders."""
        return _literal_texts(frozenset({*specials, *placeholder_texts().values()}))

    def mark(self, text: str, role: str) -> str:
        """Return a text with a mark before each special token that it spells; an assistant's thoughts have theirs."""
        return self._pattern.sub(
            lambda found: (
                found.group() if role == "assistant" and found.group() in THOUGHTS else LITERAL + found.group()
            ),
            text,
        )

    def spans(self, text: str, starts: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield from where to where the special tokens stand that begin at `starts`."""
        for start in starts:
            found = self._pattern.match(text, start)
            if found:
                yield start, found.end()


_literal_texts = functools.lru_cache(maxsize=8)(LiteralTexts)


def flaws(chat: Chat, text: str) -> int:
    """Return how often a text may show a null content as None, or JSON in a text as a text once more."""
    nulls = 0 if all(turn.has_content for turn in chat.turns) else text.count("None")
    arguments = [function.get("arguments") for turn in chat.turns for function in functions_of(turn.others)]
    return nulls + sum(isinstance(each, str) and '"' in each and json.dumps(each)[1:-1] in text for each in arguments)


def functions_of(message: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Yield the objects of a message's tool calls that have a name and arguments."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield function


def map_texts(value: object, change: Callable[[str], str]) -> object:
    """Return a value of JSON with every text in it changed, keys of objects left."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(item, change) for item in value]
    return value


def input_of(chat: Chat, literal: LiteralTexts, *, as_parts: bool, repaired: bool) -> TemplateInput:
    """Return what a template gets of a chat.

    Args:
        chat: the chat.
        literal: marks what stays text.
        as_parts: whether contents are lists of parts of text, not texts.
        repaired: for templates that do not take what stands beside tool calls as data has it: a null content is an
            empty text, and arguments that are JSON in a text are objects.
    """
    messages, medium = [], 0
    for turn in chat.turns:
        texts = []
        for part in turn.parts:
            if part.kind == "text":
                texts.append(literal.mark(part.value, turn.role))
            else:
                texts.append(f"{MEDIUM}{medium}{MEDIUM}")
                medium += 1
        content: object = [{"type": "text", "text": text} for text in texts] if as_parts else "".join(texts)
        if not turn.has_content and not repaired:
            content = None
        messages.append(_message(turn, content, literal, repaired))
    tools = (
        None if chat.tools is None else [map_texts(tool, lambda text: literal.mark(text, "")) for tool in chat.tools]
    )
    return TemplateInput(messages, tools)


def _message(turn: Turn, content: object, literal: LiteralTexts, repaired: bool) -> Message:
    others: Message = map_texts(turn.others, lambda text: literal.mark(text, turn.role))
    for function in functions_of(others):
        if repaired and isinstance(function.get("arguments"), str):
            function["arguments"] = _parsed(function["arguments"])
    message: Message = {"role": turn.role, "content": content, **others}
    reasoning = next((others[key] for key in REASONING_KEYS if key in others), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}  # as transformers hands it on


def _parsed(arguments: str) -> object:
    """Return what a text of JSON says, or the text."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments
