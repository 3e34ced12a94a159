"""A sample with its media inside: the files of a WebDataset sample."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from hetjax.data.media import located
from hetjax.data.media.held_media import HeldMedia
from hetjax.data.media.media_file import DataUri, Source, open_media
from hetjax.data.modalities import MODALITIES
from hetjax.data.reading import MediaFolder

# First bytes of files by the suffix that they get where their name has none of their kind.
_SIGNATURES = {
    b"\x89PNG": "png",
    b"\xff\xd8": "jpg",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
    b"\x1aE\xdf\xa3": "mkv",
}


class Member(NamedTuple):
    """A file of a sample: what follows the dot in its name, and its content."""

    suffix: str
    data: bytes


class Embedder:
    """Collects the media of one sample under names that it has in the shard.

    Args:
        folder: what the sample's own names of media are relative to.
    """

    def __init__(self, folder: Path | MediaFolder):
        self._folder = folder
        self._names: dict[tuple[str, object], str] = {}
        self._kept: list[Source] = []  # so that no other gets the identity of one
        self.members: list[Member] = []

    def name(self, kind: str, name: str) -> str:
        """Return the name of a medium in the shard, where it is put once. Raises DataError where it cannot be read."""
        return self.held(kind, located(name, self._folder))

    def held(self, kind: str, source: Source) -> str:
        """Return the name of an opened medium in the shard. Raises DataError where it cannot be read."""
        key = (
            (kind, id(source))
            if isinstance(source, HeldMedia)
            else (kind, source.text if isinstance(source, DataUri) else str(source))
        )
        if key not in self._names:
            with open_media(source, kind) as file:
                self._names[key] = self._add(kind, str(source), file.read())
            self._kept.append(source)
        return self._names[key]

    def _add(self, kind: str, source: str, data: bytes) -> str:
        suffixes = MODALITIES[kind].suffixes
        own = PurePath(source).suffix[1:].lower()
        found = next((suffix for start, suffix in _SIGNATURES.items() if data.startswith(start)), "")
        suffix = next((each for each in (own, found, *suffixes[:1]) if each in suffixes), None)
        if suffix is None:  # a kind of media that no reader of shards knows by its suffix
            return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
        self.members.append(Member(f"{len(self.members)}.{suffix}", data))
        return self.members[-1].suffix


def with_names(record: Mapping[str, object], name: Callable[[str, str], str]) -> dict[str, object]:
    """Return a sample in the one dialect with other names for its media, which `name` gives of a kind and a name."""

    def of_part(part: object) -> object:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in MODALITIES and isinstance(part.get(kind), str):
            return {**part, kind: name(kind, part[kind])}
        return part

    def of_message(message: object) -> object:
        content = message.get("content") if isinstance(message, Mapping) else None
        return {**message, "content": [of_part(part) for part in content]} if isinstance(content, list) else message

    changed = dict(record)
    for kind in MODALITIES:
        if isinstance(record.get(f"{kind}s"), list):
            changed[f"{kind}s"] = [name(kind, each) for each in record[f"{kind}s"]]
    if isinstance(record.get("messages"), list):
        changed["messages"] = [of_message(message) for message in record["messages"]]
    return changed


def as_json(record: Mapping[str, object]) -> bytes:
    """Return a sample as the bytes of JSON."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the files of one sample as a tar, without what closes an archive."""
    target = io.BytesIO()
    for name, data in members:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        target.write(entry.tobuf(tarfile.USTAR_FORMAT if len(name) < 100 else tarfile.PAX_FORMAT))
        target.write(data)
        target.write(bytes(-len(data) % tarfile.BLOCKSIZE))
    return target.getvalue()


END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""What closes an archive."""
