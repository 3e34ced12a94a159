"""Check the pages of an Ogg file (RFC 3533): each has a checksum and a number, and the last one says that it is it."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_damage(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with the pages of a file, or None."""
    at = 0
    numbers: dict[int, int] = {}  # of the next page, by stream
    file.seek(0)
    while at < size:
        head = file.read(27)
        if len(head) < 27 and b"OggS".startswith(head[:4]):
            return "it is truncated in the middle of a page"
        if not head.startswith(b"OggS"):
            return f"it is damaged at byte {at:,}, where a page should begin"
        flags, serial, number = head[5], *struct.unpack("<II", head[14:22])
        lengths = file.read(head[26])
        content = file.read(sum(lengths))
        if len(lengths) < head[26] or len(content) < sum(lengths):
            return "it is truncated in the middle of a page"
        if ogg_checksum(head[:22] + bytes(4) + head[26:] + lengths + content) != int.from_bytes(head[22:26], "little"):
            return f"it is damaged: the checksum of the page at byte {at:,} is wrong"
        if numbers.pop(serial, number) != number:
            return f"it is damaged: a page is missing at byte {at:,}"
        if not flags & 4:  # not the last page of its stream
            numbers[serial] = number + 1
        at += 27 + len(lengths) + len(content)
    return "it is truncated: its last page is missing" if numbers else None


def ogg_checksum(page: bytes) -> int:
    """Return the checksum of a page: zlib's polynomial, with the bits of bytes and result the other way round."""
    value = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(value.to_bytes(4, "little").translate(_REVERSED), "big")
