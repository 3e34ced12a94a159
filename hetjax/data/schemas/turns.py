"""Turns of OpenAI, LLaVA and ShareGPT as messages of this project's dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hetjax.data.schemas.columns import likely
from hetjax.data.schemas.media_values import NamedMedia, kinds
from hetjax.errors import DataError

_SAID_BY = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXTS = ("text", "input_text", "output_text")


def as_message(turn: object, number: int, media: NamedMedia, where: str) -> object:
    """Return a turn as a message; what is one already comes back as it is, and what is none is left to the reader of
    messages to refuse. Raises DataError."""
    if not isinstance(turn, Mapping):
        return turn
    if "from" in turn and "role" not in turn:
        turn = _named(turn, number, where)
    content = turn.get("content")
    parts = content
    if isinstance(content, list | tuple):
        parts = [_part(part, f"messages[{number}].content[{i}]", media, where) for i, part in enumerate(content)]
        if all(new is old for new, old in zip(parts, content, strict=True)):
            parts = content
    empty = [key for key, value in turn.items() if value is None and key != "content"]
    if parts is content and not empty:
        return turn
    kept = {key: value for key, value in turn.items() if key not in empty}
    return kept | {"content": parts} if "content" in kept else kept


def _named(turn: Mapping[str, object], number: int, where: str) -> dict[str, object]:
    """Return a turn of ShareGPT, {"from": "human", "value": …}, as a message."""
    said_by, where = turn["from"], f"{where}: conversations[{number}]"
    if "value" not in turn:
        raise DataError(f"{where} has no 'value'{likely('value', turn)}; it has {', '.join(turn)}")
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if said_by == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": _calls(turn["value"], where), **others}
    role = _SAID_BY.get(said_by, said_by) if isinstance(said_by, str) else None
    if role not in _ROLES:
        known = (*_SAID_BY, *_ROLES, "function_call")
        raise DataError(f"{where} is from {said_by!r}{likely(str(said_by), known)}; give one of {', '.join(known)}")
    return {"role": role, "content": turn["value"], **others}


def _calls(value: object, where: str) -> list[dict[str, object]]:
    """Return the calls of a turn from "function_call": an object of name and arguments, or a list of them, as JSON."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
        calls = calls if isinstance(calls, list) else [calls]
        return [
            {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}} for call in calls
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{where}: a function call must be JSON {{"name": …, "arguments": …}}: {error!r}') from error


def _part(part: object, key: str, media: NamedMedia, where: str) -> object:
    """Return a part of a message's content in this dialect, the same object where it is."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXTS:
        return part if kind == "text" and len(part) == 2 else {"type": "text", "text": part.get("text")}
    if kind == "input_audio" and isinstance(part.get(kind), Mapping):
        return {"type": "audio", "audio": media.from_base64(part[kind].get("data"), key)}
    base = next((each for each in kinds() if kind in (each, f"{each}_url", f"input_{each}")), None)
    if base is None:
        return part
    value = next(
        (part[each] for each in (kind, base, f"{base}_url", "url", "path") if part.get(each) is not None), None
    )
    if value is None:
        return {"type": "text", "text": f"<{base}>"}  # its file stands in the list of the sample
    if kind == base and isinstance(value, str) and len(part) == 2 and base in part:
        return part
    return {"type": base, base: media.name(value, key)}
