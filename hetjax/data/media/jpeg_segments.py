"""Check a JPEG file: its segments one by one, and its pixels by a decoder that takes nothing for granted.

Pillow's decoder paints grey what is missing, and says nothing. FFmpeg's, told to be strict, does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np

_START, _END, _SCAN = b"\xff\xd8", 0xD9, 0xDA
_BLOCK = 1 << 16  # bytes that are searched at a time
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_SIZES = {0xC0, 0xC1, 0xC2}  # of frames that FFmpeg decodes: baseline, extended and progressive
_NOT_DECODED = {
    *range(0xE1, 0xEE),
    0xEF,
    0xFE,
}  # EXIF, thumbnails and texts; but for JFIF and Adobe, which name colours


def jpeg_damage(file: BinaryIO) -> str | None:
    """Return what is wrong with a JPEG file, whose size in pixels has been checked, or None; it stays where it is."""
    here = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(here)
    parts, at, is_decodable = [_START], 2, False
    while True:
        marker = _NEXT_MARKER.match(content, at)
        if marker is None:
            return _wrong(at, content)
        at, kind = marker.end(), marker[1][0]
        if kind == _END:
            break
        end = at + int.from_bytes(content[at : at + 2], "big")
        if kind < 0xC0 or end < at + 2 or end > len(content):
            return _wrong(at, content) if end <= len(content) else "it is truncated in the middle of a segment"
        is_decodable |= kind in _SIZES and content[at + 2] == 8  # bits of a sample
        if kind == _SCAN:
            end, wrong = _end_of_scan(content, end)
            if wrong:
                return wrong
        parts += [] if kind in _NOT_DECODED else [b"\xff", bytes([kind]), content[at:end]]
        at = end
    if is_decodable and not _decodes(b"".join([*parts, b"\xff\xd9"])):
        return "it is damaged: its pixels are not all there, or make no sense"
    return None


def _wrong(at: int, content: bytes) -> str:
    if at >= len(content):
        return "it is truncated: nothing marks its end"
    return f"it is damaged at byte {at:,}, where a segment should begin"


def _end_of_scan(content: bytes, at: int) -> tuple[int, str | None]:
    """Return where the compressed pixels end that begin here, and what is wrong with them."""
    for restarts, (marker, kind) in enumerate(_markers(content, at)):
        if not 0xD0 <= kind <= 0xD7:
            return marker, None
        if kind != 0xD0 + restarts % 8:
            return at, f"it is damaged before byte {marker:,}: a part of the picture is missing"
    return at, "it is truncated in the middle of the picture"


def _markers(content: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield position and kind of each marker among compressed pixels, of which a regular expression would take long."""
    octets = np.frombuffer(content, np.uint8)
    for start in range(at, len(octets), _BLOCK):
        block = octets[start : start + _BLOCK + 1]
        found = (block[:-1] == 0xFF) & (block[1:] != 0) & (block[1:] != 0xFF)
        for place in np.flatnonzero(found).tolist():
            yield start + place, int(block[place + 1])


def _decodes(content: bytes) -> bool:
    """Return whether a decoder finds as many pixels as the picture should have; pixels themselves are left out."""
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode", "lowres": "3"}  # an eighth of the size: all bits, few sums
    decoder.thread_count = 1
    try:
        return not any(frame.is_corrupt for frame in decoder.decode(av.Packet(content)))
    except av.error.InvalidDataError:
        return False
    except av.error.FFmpegError:  # a picture of a kind that FFmpeg does not decode says nothing
        return True
