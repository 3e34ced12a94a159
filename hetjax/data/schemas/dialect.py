"""The schema of a sample by its keys, and the sample in the one dialect."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from hetjax.data.media.held_media import HeldMedia
from hetjax.data.reading import Line, MediaFolder, Source
from hetjax.data.schemas.columns import Columns, keys, likely, mapped, without
from hetjax.data.schemas.instructions import as_turns
from hetjax.data.schemas.media_values import NamedMedia, kind_of, lists
from hetjax.data.schemas.turns import as_message
from hetjax.errors import DataError

_MAIN = ("messages", "conversations", "instruction", "prompt", "question", "text")
# Keys of published datasets that say where a sample is from, and nothing of what it is.
ABOUT = (
    *("id", "uid", "uuid", "idx", "index", "key", "__key__", "__url__", "__index_level_0__", "sha256", "hash"),
    *("source", "dataset", "origin", "url", "license", "split", "category", "task", "topic", "lang", "language"),
    *("meta", "metadata", "timestamp", "date", "created", "model", "score", "width", "height"),
    "answers",  # texts that are right as well, which evaluation reads
)


Schema = Callable[[Mapping[str, object]], Mapping[str, object]]
"""A user's own function of a sample."""


class SchemaSource:
    """The samples of a source in the one dialect, each with the folder of its media, which lie below `root`."""

    def __init__(
        self,
        source: Source,
        columns: Columns | None = None,
        ignore: Collection[str] = (),
        root: Path | None = None,
        schema: Schema | None = None,
    ):
        self.path, self.folder = source.path, source.folder
        self.blocks = getattr(source, "blocks", None)
        self._source, self._columns, self._ignore, self._root = source, columns, ignore, root
        self._schema = schema

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Line:
        line = self._source[index]
        if self._schema is not None:
            line = _of_own_schema(line, self._schema)
        return normalised(line, self.folder, self._columns, self._ignore, self._root)


def _of_own_schema(line: Line, schema: Schema) -> Line:
    """The sample as a user's own function makes it; what the function raises is said of the sample."""
    record = _record(line.text)
    try:
        made = schema(record)
    except Exception as error:
        name = getattr(schema, "func", schema)
        called = getattr(name, "__name__", type(name).__name__)
        raise DataError(f"{line.where}: {called} raised {type(error).__name__} for the sample: {error}") from error
    if not isinstance(made, Mapping):
        raise DataError(f"{line.where}: the schema made {type(made).__name__} of the sample; return a mapping")
    return dataclasses.replace(line, text=made)


def normalised(
    line: Line,
    folder: Path,
    columns: Columns | None = None,
    ignore: Collection[str] = (),
    root: Path | None = None,
) -> Line:
    """Return a sample of any schema as one with "messages", whose media are found from `folder`, all below `root`.

    With `columns` its keys are taken from there; keys of `ignore` are left out.
    A text that is no JSON object comes back as it is: whoever parses the messages refuses it.

    Raises:
        DataError: no schema has these keys, or a value is none that it may be.
    """
    record = _record(line.text)
    if not isinstance(record, Mapping):
        return Line(text=line.text, where=line.where, folder=MediaFolder(folder=folder, where=line.where, root=root))
    sample: Mapping[str, object] = {key: value for key, value in record.items() if value is not None}
    if len(sample) == len(record):
        sample = record
    if columns is not None:
        sample = mapped(sample, columns, line.where)
    media = NamedMedia(line.media, line.where)
    made = _in_dialect(without(sample, *ignore) if ignore else sample, media, line.where)
    try:
        plain = _plain(made) if isinstance(line.text, Mapping) else made
    except (DataError, RecursionError) as error:
        raise DataError(
            f"{line.where}: the sample cannot be written as JSON: {error}; name the columns to read"
        ) from error
    found = MediaFolder(folder=folder, where=line.where, media=media.by_name, complete=bool(line.media), root=root)
    about = {key: value for key, value in record.items() if key in ABOUT}
    return Line(text=plain, where=line.where, folder=found, about=about)


def _record(text: bytes | Mapping[str, object]) -> object:
    if isinstance(text, Mapping):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _in_dialect(sample: Mapping[str, object], media: NamedMedia, where: str) -> Mapping[str, object]:
    """Return the sample with "messages", the same object where nothing was to change."""
    if "pretokenized" in sample:  # as `hetjax data convert` writes it; its media are found by their names
        return {"pretokenized": sample["pretokenized"]}
    sample = _with_members(sample, media)
    native = "messages" in sample
    if native and any(key in ABOUT for key in sample):
        sample = without(sample, *ABOUT)
    turns, left = (sample["messages"], without(sample, "messages")) if native else _turns(sample, where)
    messages = turns
    if isinstance(turns, list | tuple):
        messages = [as_message(turn, i, media, where) for i, turn in enumerate(turns)]
        if all(new is old for new, old in zip(messages, turns, strict=True)):
            messages = turns
    if native:
        files = {key: value for key, value in left.items() if key in lists() and not _are_names(value)}
        named = {key: media.names(value, key) for key, value in files.items()}
        tools = {"tools": _tools(left["tools"], where)} if isinstance(left.get("tools"), str) else {}
        if messages is turns and not named and not tools:
            return sample
        return {**sample, "messages": messages, **named, **tools}
    if "system" in left and isinstance(messages, list):
        messages = [{"role": "system", "content": left.pop("system")}, *messages]
    return {"messages": messages, **_others(left, media, where)}


def _turns(sample: Mapping[str, object], where: str) -> tuple[object, dict[str, object]]:
    """Return the turns of a sample without "messages", and what else it has."""
    for key in ("conversations", "conversation"):
        if key in sample:
            return sample[key], without(sample, key)
    found = as_turns(sample, where)
    if found is None:
        close = next((words for key in sample if (words := likely(str(key), _MAIN))), "")
        raise DataError(
            f"{where}: the sample has none of the keys {', '.join(_MAIN)}{close}; it has "
            f"{', '.join(map(str, sample)) or 'none'}. Name the columns to read: columns: {{messages: COLUMN}}"
        )
    return found


def _others(left: Mapping[str, object], media: NamedMedia, where: str) -> dict[str, object]:
    """Return what a sample has beside its turns, in the dialect; keys that only tell about it are left out."""
    made: dict[str, object] = {}
    for key, value in left.items():
        if key in lists() or f"{key}s" in lists():
            made.setdefault(key if key in lists() else f"{key}s", []).extend(media.names(value, key))
        elif key == "tools":
            made[key] = _tools(value, where) if isinstance(value, str) else value
        elif key not in ABOUT:
            raise DataError(
                f"{where}: nothing reads the key '{key}'{likely(key, keys())}; rename or remove it, list it in "
                "data.ignore_keys, or name the columns to read: columns: {messages: COLUMN}"
            )
    return made


def _with_members(sample: Mapping[str, object], media: NamedMedia) -> Mapping[str, object]:
    """Return a sample of a shard with its media members in the lists of their kinds ("images", ...).

    They are left out where the sample itself names media of their kind: there they are what the names stand for.
    """
    members = {
        key: value
        for key, value in sample.items()
        if isinstance(value, HeldMedia) and key not in keys() and kind_of(key)
    }
    if not members:
        return sample
    listed = without(sample, *members)
    lists: dict[str, list[str]] = {}
    for key in members:
        kind = kind_of(key)
        if kind not in sample and f"{kind}s" not in sample and not _shows(sample, kind):
            lists.setdefault(f"{kind}s", []).append(key)
    return {**listed, **lists}


def _shows(sample: Mapping[str, object], kind: str) -> bool:
    """Return whether a part of a message has media of a kind itself."""
    turns = sample.get("messages")
    contents = [turn.get("content") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, Mapping)]
    return any(
        part.get("type") in (kind, f"{kind}_url", f"input_{kind}")
        and sum(value is not None for value in part.values()) > 1
        for part in parts
    )


def _are_names(value: object) -> bool:
    return isinstance(value, list) and not any(isinstance(each, Mapping | bytes | HeldMedia) for each in value)


def _tools(value: str, where: str) -> object:
    """Return the tools that a column of text holds as JSON."""
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: 'tools' must be JSON: {error}") from error


def _plain(value: object) -> object:
    """Return a value of a table as JSON would have it: a date or a decimal as text. Raises DataError for bytes."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes | HeldMedia):
        raise DataError(f"{type(value).__name__} stand where no media are read")
    return str(value)
