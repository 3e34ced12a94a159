"""Tell by the first bytes of a file what it is, so that a wrong format is one error and not one a line."""

from __future__ import annotations

import codecs
from pathlib import Path

from hetjax.errors import DataError

_HEAD = 512  # bytes; a tar's signature stands at 257
_OTHERS = {
    b"PAR1": ("Parquet", "name it .parquet"),
    b"\x83\xaf\x70\xd1\x0d\x88\x4a\x3f": ("ArrayRecord", "name it .arrayrecord"),
    b"\x1f\x8b": ("gzip", "unpack it (gunzip FILE): a compressed file cannot be read by index"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unpack it (unzstd FILE): a compressed file cannot be read by index"),
    b"BZh": ("bzip2", "unpack it (bunzip2 FILE): a compressed file cannot be read by index"),
    b"\xfd7zXZ": ("xz", "unpack it (unxz FILE): a compressed file cannot be read by index"),
    b"PK\x03\x04": ("zip", "unpack it (unzip FILE)"),
    b"ARROW1": ("Arrow IPC", "write it as Parquet (dataset.to_parquet(FILE))"),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself (git lfs pull)"),
    b"<!DOCTYPE": ("an HTML page", "download the file itself"),
    b"<html": ("an HTML page", "download the file itself"),
    codecs.BOM_UTF16_LE: ("UTF-16", "write it as UTF-8 (iconv -f utf-16 -t utf-8 FILE)"),
    codecs.BOM_UTF16_BE: ("UTF-16", "write it as UTF-8 (iconv -f utf-16 -t utf-8 FILE)"),
}


def signature(path: Path) -> tuple[str, str] | None:
    """Return (what a file is, what to do with it) where its first bytes tell; None otherwise. Raises DataError."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise DataError(f"dataset '{path}' cannot be read: {error.strerror}; give a readable file") from error
    if head[257:262] == b"ustar":
        return "tar", "name it .tar (WebDataset)"
    found = next((other for start, other in _OTHERS.items() if head.startswith(start)), None)
    if found is None and b"\x00" in head:
        return "binary", "give a file of JSONL, JSON, Parquet, ArrayRecord or a WebDataset tar"
    return found


def check_signature(path: Path, wanted: str) -> None:
    """Raise DataError where a file cannot be read, or is visibly of another format than `wanted`."""
    found = signature(path)
    if found is not None and found[0] != wanted:
        raise DataError(f"dataset '{path}' is no {wanted} file but {found[0]}; {found[1]}")


def first_byte(path: Path) -> bytes:
    """Return the first byte of a text that is neither white space nor a byte order mark; none where it is empty."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    return head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
