"""Parse conversations of text, images, videos and audio, from a line of a dataset or from a program.

A message is `{"role": "user", "content": ...}`, its content a text or a list of parts
`{"type": "text", "text": "..."}`, `{"type": "image", "image": "a.png"}`, `{"type": "video", "video": "c.mp4"}` and
`{"type": "audio", "audio": "b.wav"}`; media are paths or arrays. Beside "messages" a line may have the lists "images",
"videos" and "audios" (a list "NAMEs" of each modality NAME), whose files stand where the marks "<image>", "<video>" and
"<audio>" do in texts of users and systems, or, of a kind without any mark, before the text of the first user message;
and "tools", which go to the chat template. A message of an assistant may also have "reasoning_content", "tool_calls",
beside which "content" may be null, and "weight" or "train", by which the loss counts it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from hetjax.data.chat.marks import check_unmarked
from hetjax.data.chat.message_keys import IGNORED_IN_SILENCE, check_sample_keys, loss_weight
from hetjax.data.media import located
from hetjax.data.modalities import MODALITIES
from hetjax.data.reading import MediaFolder
from hetjax.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a message: `kind` is "text" or the name of a modality, `value` the text, a path or an array."""

    kind: str
    value: object


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """The message of one role.

    Attributes:
        role: who says it.
        parts: its content; none where that is null or missing, as it may be beside tool calls.
        others: further keys of the message, which the chat template reads.
        weight: what each token that an assistant says counts in the loss.
        has_content: whether there is a content.
        in_parts: whether its content was a list of parts, in whose texts a mark without a file is letters.
    """

    role: str
    parts: tuple[Part, ...]
    others: Mapping[str, object] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    has_content: bool = True
    in_parts: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """The turns of a conversation.

    Attributes:
        turns: in their order.
        where: what opens every error about it ("file:line", "the prompt").
        tools: what the chat template gets as its tools, or None.
    """

    turns: tuple[Turn, ...]
    where: str
    tools: tuple[Mapping[str, object], ...] | None = None

    @property
    def media(self) -> list[Part]:
        """Return all media, in order."""
        return [part for turn in self.turns for part in turn.parts if part.kind != "text"]

    @property
    def files(self) -> list[Path]:
        """Return those of `media` that are files."""
        return [Path(part.value) for part in self.media if isinstance(part.value, str | Path)]

    def asked(self) -> tuple[Chat, str]:
        """Return the chat up to its last answer, and that answer.

        Raises DataError where there is none, or one of tool calls without a text.
        """
        answers = [i for i, turn in enumerate(self.turns) if turn.role == "assistant"]
        if not answers:
            raise DataError(f"{self.where}: no assistant message, so there is no answer to compare with")
        turn = self.turns[answers[-1]]
        if not turn.has_content:
            raise DataError(f"{self.where}: the last assistant message has no content, so there is nothing to compare")
        return dataclasses.replace(self, turns=self.turns[: answers[-1]]), "".join(part.value for part in turn.parts)


def parse_line(
    line: str | bytes | Mapping[str, object], *, where: str, folder: Path | MediaFolder, ignore: Collection[str] = ()
) -> Chat:
    """Read a sample, an object or the JSON of one; paths are relative to `folder`, keys of `ignore` are left out.

    Raises DataError, whose message opens with `where`.
    """
    try:
        record = line if isinstance(line, Mapping) else json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: a line must be a JSON object with the key 'messages', not {type(record).__name__}")
    lists = {kind: f"{kind}s" for kind in MODALITIES}
    check_sample_keys(record, ("messages", "tools", *lists.values()), where, ignore)
    files = {}
    for kind, key in lists.items():
        value = None if key in ignore else record.get(key)
        files[kind] = [] if value is None else value
        if not isinstance(files[kind], list) or not all(isinstance(file, str) for file in files[kind]):
            raise DataError(f"{where}: '{key}' must be a list of file names, not {files[kind]!r}")
    tools = None if "tools" in ignore else record.get("tools")
    chat = parse_messages(record.get("messages"), where=where, files=files, tools=tools, ignore=ignore)
    return dataclasses.replace(chat, turns=tuple(_in_folder(turn, folder) for turn in chat.turns))


def parse_messages(
    messages: object,
    *,
    where: str = "the messages",
    files: Mapping[str, Sequence[object]] | None = None,
    tools: object = None,
    ignore: Collection[str] = (),
) -> Chat:
    """Check messages, and put `files` ({"image": [...], ...}) where their marks stand.

    Without `files` marks are letters. `tools` are what the chat template gets: objects, or JSON of a list of them. Keys
    of messages that are in `ignore` are left out. Raises DataError.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(f"{where}: 'messages' must be a list of at least one message, not {messages!r}")
    try:
        turns = [_turn(message, i, ignore) for i, message in enumerate(messages)]
        placed = turns if files is None else _place_files(turns, {kind: list(each) for kind, each in files.items()})
        return Chat(turns=tuple(placed), where=where, tools=_tools(tools))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _turn(message: object, number: int, ignore: Collection[str]) -> Turn:
    where = f"message {number}"
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise DataError(f"{where} must be an object whose 'role' is one of {', '.join(ROLES)}")
    role, content = message["role"], message.get("content")
    others = {
        key: value
        for key, value in message.items()
        if key not in ("role", "content", "weight", "train", *ignore) and value is not None and value != []
    }
    has_content, in_parts = content is not None, isinstance(content, list | tuple)
    if not has_content and role == "assistant" and others.keys() - IGNORED_IN_SILENCE:
        content = []
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(content, list | tuple):
        raise DataError(f"{where}: 'content' must be a text or a list of parts, not {content!r}")
    try:
        parts = tuple(_part(item) for item in content)
        _check_texts(others)
        weight = loss_weight({key: message[key] for key in ("weight", "train") if key in message}, role)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if role == "assistant" and any(part.kind != "text" for part in parts):
        raise DataError(f"{where}: an assistant's message is text alone; move images, videos and audio to a user's")
    return Turn(role=role, parts=parts, others=others, weight=weight, has_content=has_content, in_parts=in_parts)


def _part(item: object) -> Part:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in ("text", *MODALITIES):
        raise DataError(f"a part must be an object whose 'type' is one of text, {', '.join(MODALITIES)}")
    value = item.get(kind)
    if value is None or (kind == "text" and not isinstance(value, str)):
        wanted = "a text" if kind == "text" else "a path or an array"
        raise DataError(f"a part of type '{kind}' needs {wanted} under the key '{kind}'")
    _check_texts(value)
    return Part(kind=kind, value=value)


def _check_texts(value: object) -> None:
    """Raise DataError where a text in a value of JSON cannot be one."""
    if isinstance(value, str):
        check_unmarked(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_texts(key)
            _check_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_texts(item)


def _tools(tools: object) -> tuple[Mapping[str, object], ...] | None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise DataError(f"'tools' is a text, but not JSON: {error}") from error
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"'tools' must be a list of objects, or JSON of one, not {tools!r}")
    _check_texts(tools)
    return tuple(tools)


def _place_files(turns: list[Turn], files: dict[str, list[object]]) -> list[Turn]:
    """Return the turns with each file in the place of its mark, or before the first user message's parts."""
    counts = {
        kind: sum(_count(turn, kind) for turn in turns if values or not turn.in_parts) for kind, values in files.items()
    }
    for kind, values in files.items():
        if counts[kind] in (0, len(values)):
            continue
        raise DataError(
            f"{counts[kind]} marks <{kind}> in the messages but {len(values)} files in '{kind}s'; give one mark a "
            "file, or no marks at all to put all files before the first user message"
            + ("" if values else "; a content that means these letters is a list of parts")
        )
    ahead = [Part(kind=kind, value=value) for kind in files if not counts[kind] for value in files[kind]]
    left = {kind: iter(values) for kind, values in files.items() if counts[kind] and values}
    placed = []
    for turn in turns:
        parts = [piece for part in turn.parts for piece in _split(part, turn, left)]
        if turn.role == "user" and ahead:
            parts, ahead = [*ahead, *parts], []
        placed.append(dataclasses.replace(turn, parts=tuple(parts)))
    if ahead:
        raise DataError(f"{len(ahead)} files without a mark, and no user message to put them in; add one")
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


def _in_folder(turn: Turn, folder: Path | MediaFolder) -> Turn:
    parts = tuple(
        dataclasses.replace(part, value=located(part.value, folder))
        if part.kind != "text" and isinstance(part.value, str)
        else part
        for part in turn.parts
    )
    return dataclasses.replace(turn, parts=parts)
