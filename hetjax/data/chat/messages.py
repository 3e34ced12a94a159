"""Parse conversations of text, images, videos and audio, from a line of a dataset or from a program.

A message is `{"role": "user", "content": ...}`, its content a text or a list of parts
`{"type": "text", "text": "..."}`, `{"type": "image", "image": "a.png"}`, `{"type": "video", "video": "c.mp4"}` and
`{"type": "audio", "audio": "b.wav"}`; media are paths or arrays. Beside "messages" a line may have the lists "images",
"videos" and "audios" (a list "NAMEs" of each modality NAME), whose files stand where the marks "<image>", "<video>" and
"<audio>" do in texts of users and systems, or, of a kind without any mark, before the text of the first user message.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hetjax.data.media import located
from hetjax.data.modalities import MODALITIES
from hetjax.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a message: `kind` is "text" or the name of a modality, `value` the text, a path or an array."""

    kind: str
    value: object


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """The message of one role; `others` are further keys of the message, which a chat template may read."""

    role: str
    parts: tuple[Part, ...]
    others: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """The turns of a conversation; `where` ("file:line", "the prompt") opens every error about it."""

    turns: tuple[Turn, ...]
    where: str

    @property
    def media(self) -> list[Part]:
        """Return all media, in order."""
        return [part for turn in self.turns for part in turn.parts if part.kind != "text"]

    @property
    def files(self) -> list[Path]:
        """Return those of `media` that are files."""
        return [Path(part.value) for part in self.media if isinstance(part.value, str | Path)]

    def asked(self) -> tuple[Chat, str]:
        """Return the chat up to its last answer, and that answer. Raises DataError where there is none."""
        answers = [i for i, turn in enumerate(self.turns) if turn.role == "assistant"]
        if not answers:
            raise DataError(f"{self.where}: no assistant message, so there is no answer to compare with")
        turn = self.turns[answers[-1]]
        return dataclasses.replace(self, turns=self.turns[: answers[-1]]), "".join(part.value for part in turn.parts)


def parse_line(line: str | bytes, *, where: str, folder: Path) -> Chat:
    """Read one line of JSON; paths are relative to `folder`. Raises DataError, whose message opens with `where`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a line must be a JSON object with the key 'messages', not {type(record).__name__}")
    files = {}
    for kind in MODALITIES:
        files[kind] = record.get(f"{kind}s")
        files[kind] = [] if files[kind] is None else files[kind]
        if not isinstance(files[kind], list) or not all(isinstance(file, str) for file in files[kind]):
            raise DataError(f"{where}: '{kind}s' must be a list of file names, not {files[kind]!r}")
    chat = parse_messages(record.get("messages"), where=where, files=files)
    return dataclasses.replace(chat, turns=tuple(_in_folder(turn, folder) for turn in chat.turns))


def parse_messages(
    messages: object, *, where: str = "the messages", files: Mapping[str, Sequence[object]] | None = None
) -> Chat:
    """Check messages, and put `files` ({"image": [...], ...}) where their marks stand. Raises DataError."""
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(f"{where}: 'messages' must be a list of at least one message, not {messages!r}")
    turns = [_turn(message, i, where) for i, message in enumerate(messages)]
    given = {kind: list(values) for kind, values in (files or {}).items() if len(values)}
    return Chat(turns=tuple(_place_files(turns, given, where)), where=where)


def _turn(message: object, number: int, where: str) -> Turn:
    where = f"{where}: message {number}"
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise DataError(f"{where} must be an object whose 'role' is one of {', '.join(ROLES)}")
    content = message.get("content")
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(content, list | tuple):
        raise DataError(f"{where}: 'content' must be a text or a list of parts, not {content!r}")
    parts = tuple(_part(item, where) for item in content)
    if message["role"] == "assistant" and any(part.kind != "text" for part in parts):
        raise DataError(f"{where}: an assistant's message is text alone; move images, videos and audio to a user's")
    others = {key: value for key, value in message.items() if key not in ("role", "content")}
    return Turn(role=message["role"], parts=parts, others=others)


def _part(item: object, where: str) -> Part:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in ("text", *MODALITIES):
        raise DataError(f"{where}: a part must be an object whose 'type' is one of text, {', '.join(MODALITIES)}")
    value = item.get(kind)
    if value is None or (kind == "text" and not isinstance(value, str)):
        wanted = "a text" if kind == "text" else "a path or an array"
        raise DataError(f"{where}: a part of type '{kind}' needs {wanted} under the key '{kind}'")
    return Part(kind=kind, value=value)


def _place_files(turns: list[Turn], files: dict[str, list[object]], where: str) -> list[Turn]:
    """Return the turns with each file in the place of its mark, or before the first user message's parts."""
    counts = {kind: sum(_count(turn, kind) for turn in turns) for kind in files}
    for kind, values in files.items():
        if counts[kind] not in (0, len(values)):
            raise DataError(
                f"{where}: {counts[kind]} marks <{kind}> in the messages but {len(values)} files in '{kind}s'; give "
                "one mark a file, or no marks at all to put all files before the first user message"
            )
    ahead = [Part(kind=kind, value=value) for kind in files if not counts[kind] for value in files[kind]]
    left = {kind: iter(values) for kind, values in files.items() if counts[kind]}
    placed = []
    for turn in turns:
        parts = [piece for part in turn.parts for piece in _split(part, turn, left)]
        if turn.role == "user" and ahead:
            parts, ahead = [*ahead, *parts], []
        placed.append(dataclasses.replace(turn, parts=tuple(parts)))
    if ahead:
        raise DataError(f"{where}: {len(ahead)} files without a mark, and no user message to put them in; add one")
    return placed


def _count(turn: Turn, kind: str) -> int:
    if turn.role == "assistant":
        return 0
    return sum(part.value.count(f"<{kind}>") for part in turn.parts if part.kind == "text")


def _split(part: Part, turn: Turn, left: Mapping[str, Iterator[object]]) -> list[Part]:
    if part.kind != "text" or turn.role == "assistant" or not left:
        return [part]
    pieces: list[Part] = []
    for text in re.split(f"(<(?:{'|'.join(map(re.escape, MODALITIES))})>)", part.value):
        kind = text.strip("<>")
        if text == f"<{kind}>" and kind in left:
            pieces.append(Part(kind=kind, value=next(left[kind])))
        elif text:
            pieces.append(Part(kind="text", value=text))
    return pieces


def _in_folder(turn: Turn, folder: Path) -> Turn:
    parts = tuple(
        dataclasses.replace(part, value=located(part.value, folder))
        if part.kind != "text" and isinstance(part.value, str)
        else part
        for part in turn.parts
    )
    return dataclasses.replace(turn, parts=parts)
