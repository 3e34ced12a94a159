"""Open what a sample names as a medium: a regular file, or a data URI that holds the content itself."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import os
import re
import stat
import urllib.parse
from pathlib import Path
from typing import BinaryIO

from hetjax.data.media.held_media import HeldMedia
from hetjax.errors import DataError

_KINDS = {
    stat.S_ISDIR: "folder",
    stat.S_ISFIFO: "named pipe",
    stat.S_ISSOCK: "socket",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
}
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_ADDRESS = re.compile(r"(?:^|/)[a-z][a-z0-9+.-]+:/+", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, repr=False)
class DataUri:
    """A medium in the sample itself, as `data:image/png;base64,...` (RFC 2397). Its text is in no message."""

    text: str

    def __str__(self) -> str:
        head = self.text.partition(",")[0][:40]
        return f"{printable(head)},... of {len(self.text)} characters"

    __repr__ = __str__

    def content(self) -> bytes:
        """Return the content. Raises DataError where it is malformed."""
        head, comma, body = self.text.partition(",")
        if not comma:
            raise DataError(f"data URI '{self}' has no comma before its content; give data:image/png;base64,...")
        if not head.lower().rstrip().endswith(";base64"):
            return urllib.parse.unquote_to_bytes(body)
        digits = "".join(urllib.parse.unquote(body).split()).rstrip("=").translate(str.maketrans("-_", "+/"))
        try:
            return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"data URI '{self}' is no valid base64: {error}; write it again") from error


Source = str | os.PathLike[str] | DataUri | HeldMedia
"""A path or a data URI, as a text either; or what a dataset holds."""


def is_source(value: object) -> bool:
    """Return whether a medium is given as a path, as a data URI or by its dataset, rather than as an array."""
    return isinstance(value, str | os.PathLike | DataUri | HeldMedia)


def located(name: str, folder: Path) -> Path | DataUri:
    """Return the medium that a sample of a dataset in `folder` names: a data URI, or a path relative to the folder."""
    return DataUri(name) if name[:5].lower() == "data:" else folder / name


def printable(text: str) -> str:
    """Return a text that any terminal or log takes, on one line.

    Lone surrogates, control characters, ends of lines, and marks that turn the direction of writing become escapes: a
    file's name must not forge a line of a log, nor move the cursor.
    """
    one_line = _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return one_line.encode("utf-8", "backslashreplace").decode()


def named(kind: str, source: Source) -> str:
    """Return what an error calls a medium: "image 'a.png'"."""
    if isinstance(source, str) and source[:5].lower() == "data:":
        source = DataUri(source)
    return f"{kind} '{printable(str(source))}'"


def open_media(source: Source, kind: str) -> BinaryIO:
    """Open a medium to be read; `kind` ("image", "audio", "video") is what an error calls it.

    Decoders get the open file and never its name, which could make them open something else.

    Raises:
        DataError: it is missing, empty, no regular file, or a malformed data URI.
    """
    if isinstance(source, str) and source[:5].lower() == "data:":
        source = DataUri(source)
    what = named(kind, source)
    if isinstance(source, DataUri):
        content = source.content()
        if not content:
            raise DataError(f"{what} is empty; replace it or remove its line")
        return io.BytesIO(content)
    if isinstance(source, HeldMedia):
        return _open_held(source, what)
    check_regular(source, kind)
    try:
        # Should a pipe have taken the file's place by now, it is not waited for.
        return open(source, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))
    except OSError as error:
        raise DataError(f"{what} cannot be opened: {error.strerror}; give a readable file") from error


def _open_held(source: HeldMedia, what: str) -> BinaryIO:
    try:
        file = source.open()
    except OSError as error:
        raise DataError(f"{what} cannot be opened: {error.strerror}; give a readable file") from error
    if not file.seek(0, os.SEEK_END):
        raise DataError(f"{what} is empty; replace it or remove its line")
    file.seek(0)
    return file


def check_regular(path: str | os.PathLike[str], kind: str) -> None:
    """Raise DataError unless a path is that of a regular file with something in it. Opens nothing."""
    what = named(kind, path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "download it, and give the file" if _ADDRESS.search(os.fspath(path)) else "give a file that is there"
        raise DataError(f"{what} does not exist; {hint}") from error
    except OSError as error:
        raise DataError(f"{what} cannot be opened: {error.strerror}; give a readable file") from error
    except ValueError as error:  # a null character or a lone surrogate, of which no name can be made
        raise DataError(f"{what} is not the name of a file: {printable(str(error))}; correct the name") from error
    if not stat.S_ISREG(status.st_mode):
        found = next((name for test, name in _KINDS.items() if test(status.st_mode)), "special file")
        raise DataError(f"{what} is a {found}; give a regular file")
    if not status.st_size:
        raise DataError(f"{what} is an empty file; replace the file or remove its line")
