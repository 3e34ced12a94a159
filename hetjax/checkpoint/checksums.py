"""Checksums of a checkpoint's files: what each process wrote, and whether it is still what was written.

A file has one CRC-32 for every `BLOCK_BYTES`, so that threads share a large file and damage has a place. Those of all
files lie in `CHECKSUMS_FILE`, which begins with one of its own.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from isal import isal_zlib

CHECKSUMS_FILE = "checksums"
"""Where the checksums are inside a checkpoint."""

BLOCK_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_MOST_THREADS = 8


class Checksum(NamedTuple):
    """The size of a file in bytes, and the CRC-32 of each of its blocks."""

    size: int
    blocks: tuple[int, ...]


Checksums = Mapping[str, Checksum]
"""Checksums of files by their path inside the checkpoint."""


class Block(NamedTuple):
    """A block of a file of `size` bytes, from `start` to `stop`, with its checksum."""

    file: str
    size: int
    start: int
    stop: int
    crc: int


def checksums_of(folder: Path, files: Iterable[str]) -> dict[str, Checksum]:
    """Read files of a folder and return their checksums. Raises OSError."""
    found = {}
    with _threads() as threads:
        for file in files:
            size = (folder / file).stat().st_size
            starts = range(0, size, BLOCK_BYTES)
            blocks = threads.map(lambda start, file=file: _crc(folder / file, start, start + BLOCK_BYTES), starts)
            found[file] = Checksum(size, tuple(blocks))
    return found


def files_in(folder: Path) -> list[str]:
    """Return the paths of all files in a folder and the folders in it, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def to_text(checksums: Checksums) -> str:
    """Return the content of a file of checksums."""
    content = json.dumps({file: [each.size, *each.blocks] for file, each in sorted(checksums.items())})
    return f"{isal_zlib.crc32(content.encode())}\n{content}\n"


def from_text(text: str) -> dict[str, Checksum]:
    """Return the checksums that a file holds. Raises ValueError where it is damaged."""
    crc, _, content = text.partition("\n")
    content = content.removesuffix("\n")
    if crc != str(isal_zlib.crc32(content.encode())):
        raise ValueError("the checksums themselves are damaged")
    return {file: Checksum(size, tuple(blocks)) for file, (size, *blocks) in json.loads(content).items()}


def find_damage(folder: Path, blocks: Collection[Block]) -> str | None:
    """Read blocks of files and return what is wrong with the first that is not as it was written, or None."""
    with _threads() as threads:
        return next(filter(None, threads.map(lambda block: _damage(folder, block), blocks)), None)


def blocks_of(checksums: Checksums) -> Iterator[Block]:
    """Yield all blocks of files; one without a byte for an empty file."""
    for file, (size, crcs) in checksums.items():
        if not crcs:
            yield Block(file, size, 0, 0, 0)
        for number, crc in enumerate(crcs):
            start = number * BLOCK_BYTES
            yield Block(file, size, start, min(start + BLOCK_BYTES, size), crc)


def share_of(blocks: Sequence[Block], process: int, processes: int) -> list[Block]:
    """Return the blocks that one of several processes reads; together they read each once."""
    return list(blocks[process::processes])


def _damage(folder: Path, block: Block) -> str | None:
    path = folder / block.file
    try:
        size = path.stat().st_size
        if size != block.size:
            return f"{block.file} has {size} bytes, where {block.size} were written"
        crc = _crc(path, block.start, block.stop)
    except OSError as error:
        return f"{block.file} cannot be read: {error.strerror}"
    return None if crc == block.crc else f"bytes {block.start} to {block.stop} of {block.file} are not what was written"


def _crc(path: Path, start: int, stop: int) -> int:
    crc, buffer = 0, memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < stop and (count := file.readinto(buffer[: min(_READ_BYTES, stop - start)])):
            crc, start = isal_zlib.crc32(buffer[:count], crc), start + count
    return crc


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "checksums")
