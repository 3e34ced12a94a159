"""Read the samples of a WebDataset tar shard by index."""

from __future__ import annotations

import io
import json
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hetjax.data.media.held_media import HeldMedia, MediaBytes, MediaRange
from hetjax.data.reading.signatures import check_signature
from hetjax.data.reading.source import Line
from hetjax.errors import DataError

TEXT_SUFFIXES = ("txt", "text", "caption", "cls", "transcript")
_READ_WHOLE = 1 << 26  # bytes of a text or JSON member; a longer one is no sample of a conversation


class WebDatasetSource:
    """The samples of an uncompressed tar shard: members one behind the other whose paths agree up to the first dot of
    their names (`0001.json`, `0001.jpg`, `0001.1.jpg`).

    Only an index of 8 bytes a sample is held in memory. A lookup reads the headers of the sample's members and those of
    text; what is media becomes a `MediaRange`, which is read when it is decoded.

    A sample is the object of its member `json`. Its media are known by the names of members, whole, without folders,
    or what follows the first dot. Every other member is a key of the object: `0001.txt` the text "txt", `0001.jpg`
    the media "jpg".

    Raises:
        DataError: the file is missing, no tar, damaged, has no sample, or has members of a sample in two places.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.folder = self.path.parent
        check_signature(self.path, "tar")
        starts, hashes, last = array("q"), array("q"), None
        try:
            with self.path.open("rb") as file:
                for member in _members(file):
                    key = _key(member.name)[0]
                    if key != last:
                        starts.append(member.offset)
                        hashes.append(hash(key))
                        last = key
        except (tarfile.TarError, OSError) as error:
            raise DataError(
                f"dataset '{path}' is no tar that can be read to its end: {error}; get it anew, or pack it with "
                "tar --sort=name -cf"
            ) from error
        if not starts:
            raise DataError(f"dataset '{path}' is empty; give a tar with files NAME.json, NAME.jpg, …")
        self._starts = np.frombuffer(starts, np.int64)
        self._check_keys(np.frombuffer(hashes, np.int64))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Line:
        try:
            with self.path.open("rb") as file:
                file.seek(int(self._starts[index]))
                return sample_of(_one_sample(file), file, path=self.path, where=f"{self.path}:{index + 1}")
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{self.path}:{index + 1}: the sample cannot be read: {error}") from error

    def _check_keys(self, hashes: np.ndarray) -> None:
        order = np.argsort(hashes, kind="stable")
        twice = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if len(twice):
            first, second = sorted(order[twice[0] : twice[0] + 2])
            with self.path.open("rb") as file:
                file.seek(int(self._starts[second]))
                name = next(iter(_one_sample(file))).name
            raise DataError(
                f"dataset '{self.path}': members of the sample of '{name}' stand in two places (samples {first + 1} "
                f"and {second + 1}); pack it so that those of a sample are one behind the other: tar --sort=name -cf"
            )


def sample_of(members: list[tarfile.TarInfo], file: io.BufferedIOBase, *, path: Path | None, where: str) -> Line:
    """Return the sample of members that lie in `file`; with a `path`, media are read from it when they are decoded.

    Raises:
        DataError: two members have one name, or the member `json` is no object.
    """
    values: dict[str, object] = {}
    media: dict[str, HeldMedia] = {}
    key = _key(members[0].name)[0] if members else ""
    for member in members:
        suffix = _key(member.name)[1]
        if suffix in values:
            raise DataError(f"{where} ({key}): two members are called '{member.name}'; remove or rename one")
        if _is_text(suffix):
            values[suffix] = _text(member, file, f"{where} ({member.name})")
            continue
        if path is not None:
            values[suffix] = MediaRange(path=path, name=member.name, offset=member.offset_data, size=member.size)
        else:
            file.seek(member.offset_data)
            values[suffix] = MediaBytes(name=member.name, data=file.read(member.size))
        media |= dict.fromkeys((member.name, Path(member.name).name, suffix), values[suffix])
    record = values.pop("json", None)
    if record is None:
        return Line(text=values, where=f"{where} ({key})", media=media)
    if not isinstance(record, dict):
        raise DataError(f"{where} ({key}.json): must be a JSON object, not {type(record).__name__}")
    return Line(text=values | record, where=f"{where} ({key})", media=media)


def packed_sample(data: bytes, where: str) -> Line:
    """Return the sample of a tar in memory that has its members alone. Raises DataError."""
    file = io.BytesIO(data)
    try:
        return sample_of(list(_members(file)), file, path=None, where=where)
    except tarfile.TarError as error:
        raise DataError(f"{where}: neither a JSON object nor a tar: {error}") from error


def _members(file: io.BufferedIOBase) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar from a position on, without hidden ones; of their contents nothing is read."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # a list of all of them would be larger than the index
            if member.isfile() and not Path(member.name).name.startswith("."):
                yield member


def _one_sample(file: io.BufferedIOBase) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    for member in _members(file):
        if members and _key(member.name)[0] != _key(members[0].name)[0]:
            break
        members.append(member)
    return members


def _key(name: str) -> tuple[str, str]:
    """Return (what the members of a sample have in common, what follows the dot), as WebDataset splits a name."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _is_text(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in ("json", *TEXT_SUFFIXES)


def _text(member: tarfile.TarInfo, file: io.BufferedIOBase, where: str) -> object:
    if member.size > _READ_WHOLE:
        raise DataError(f"{where}: {member.size} bytes of text, more than {_READ_WHOLE}; split it")
    file.seek(member.offset_data)
    data = file.read(member.size)
    try:
        text = data.decode("utf-8-sig")
        return json.loads(text) if member.name.lower().endswith("json") else text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {'no JSON' if member.name.endswith('json') else 'no UTF-8'}: {error}") from error
