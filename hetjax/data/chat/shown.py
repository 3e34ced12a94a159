"""Check that a chat template shows all that a chat has.

Every field that is text gets a mark inside, where no template looks, and the chat is rendered once more: a field whose
mark is gone was left out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from hetjax.data.chat.marks import FIELD, MarkedText, Place
from hetjax.data.chat.message_keys import REASONING_KEYS
from hetjax.data.chat.template_messages import TemplateInput, functions_of, map_texts
from hetjax.errors import DataError

Render = Callable[[TemplateInput], MarkedText]

_TAG = re.compile(r"<[^<>]*>|[\ufdd0\ufdd1][0-9]*\ufdd0?")
_ALL = range(1 << 30)


class Field(NamedTuple):
    """A text of a message, or of the tools (`turn` is -1)."""

    turn: int
    name: str


def check_shown(given: TemplateInput, rendered: MarkedText, render: Render) -> list[Place]:
    """Return where the text shows fields, each with the number of its message, as far as that can be seen.

    Reasoning of an earlier turn may be left out where the template shows it as long as the turn is the last one: then
    it is left out of what the model is given at that point, too.

    Raises DataError for a field that the template leaves out.
    """
    marked, fields = _marked(given, _ALL)
    shown = _fields_shown(marked, rendered, render, fields)
    for number, field in enumerate(fields):
        if number in shown or (field.name == "reasoning" and _shown_when_said(given, number, field.turn, render)):
            continue
        owner = "the chat" if field.turn < 0 else f"message {field.turn}"
        raise DataError(
            f"{owner}: the chat template does not show its {field.name}; give a template that does "
            "(processor.chat_template), options by which this one does (processor.template_options), or remove it"
        )
    return [Place(position, fields[number].turn) for number, position in shown.items() if position is not None]


def _fields_shown(
    marked: TemplateInput, rendered: MarkedText, render: Render, fields: list[Field]
) -> Mapping[int, int | None]:
    try:
        found = render(marked)
    except DataError:
        found = None
    if found is not None and found.text == rendered.text:
        return found.fields
    # A mark has changed the course of the template; which one, they say one by one.
    return {number: None for number in range(len(fields)) if _is_shown(marked, rendered, render, number)}


def _is_shown(marked: TemplateInput, rendered: MarkedText, render: Render, number: int) -> bool:
    def keep(text: str) -> str:
        return re.sub(f"{FIELD}([0-9]+){FIELD}", lambda found: found.group() if int(found[1]) == number else "", text)

    one = TemplateInput(map_texts(marked.messages, keep), map_texts(marked.tools, keep))
    try:
        found = render(one)
    except DataError:
        return True
    return number in found.fields or found.text != rendered.text


def _shown_when_said(given: TemplateInput, number: int, turn: int, render: Render) -> bool:
    """Return whether a template shows a field as long as no user has spoken after it."""
    roles = [message["role"] for message in given.messages]
    if "user" not in roles[turn:]:
        return False
    marked, _ = _marked(given, (number,))
    try:
        return number in render(marked._replace(messages=marked.messages[: roles.index("user", turn)])).fields
    except DataError:
        return False


def _marked(given: TemplateInput, wanted: Container[int]) -> tuple[TemplateInput, list[Field]]:
    """Return a copy with the marks of the fields whose numbers are wanted, and all fields."""
    fields: list[Field] = []

    def mark(text: str, turn: int, name: str) -> str:
        at = _place(text)
        if at is None:
            return text
        fields.append(Field(turn, name))
        number = len(fields) - 1
        return f"{text[:at]}{FIELD}{number}{FIELD}{text[at:]}" if number in wanted else text

    messages, tools = copy.deepcopy(given)
    for turn, message in enumerate(messages):
        _mark_content(message, turn, mark)
        reasoning = next((message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)), None)
        if reasoning is not None:
            found = mark(reasoning, turn, "reasoning")
            message.update({key: found for key in REASONING_KEYS if message.get(key) == reasoning})
        for function in functions_of(message):
            _mark_function(function, turn, mark)
    for tool in tools or ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            function["name"] = mark(function["name"], -1, "tools")
    return TemplateInput(messages, tools), fields


def _mark_content(message: dict[str, object], turn: int, mark: Callable[[str, int, str], str]) -> None:
    def mark_text(text: str) -> str:
        thought, end, said = text.rpartition("</think>") if message["role"] == "assistant" else ("", "", text)
        return mark(thought, turn, "reasoning") + end + mark(said, turn, "content")

    content = message["content"]
    if isinstance(content, str):
        message["content"] = mark_text(content)
    for part in content if isinstance(content, list) else ():
        part["text"] = mark_text(part["text"])


def _mark_function(function: dict[str, object], turn: int, mark: Callable[[str, int, str], str]) -> None:
    for key in ("name", "arguments"):
        if key in function:
            function[key] = map_texts(function[key], lambda text: mark(text, turn, "tool calls"))


def _place(text: str) -> int | None:
    """Return where a mark changes least: behind the first letter or digit that is in no tag."""
    plain = _TAG.sub(lambda found: " " * len(found.group()), text)
    found = re.search(r"\w", plain) or re.search(r"[^\s<>]", plain)
    return found.end() if found else None
