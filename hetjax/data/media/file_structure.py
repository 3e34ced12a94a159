"""Find files that are truncated or damaged by the lengths and checksums that they hold themselves.

Decoders are made to get something out of any file: most give half of a cut one without a word. Checked here, before
anything is decoded: the chunks of RIFF (WAV, AVI, WebP), AIFF, AU, CAF, Wave64, ASF, PNG and MP4, the elements of
Matroska and WebM, the pages of Ogg, the frames of MP3 and ADTS, the packets of MPEG and FLV streams. Nothing is known
of other formats.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from hetjax.data.media.mpeg_audio import mpeg_audio_damage
from hetjax.data.media.ogg_pages import ogg_damage
from hetjax.data.media.stream_structure import adts_damage, flv_damage, program_damage, transport_damage
from hetjax.errors import DataError

_BLOCK = 1 << 20  # bytes read at a time
_UNKNOWN = {0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF}
"""What programs write as the length of audio that they cannot know yet."""


def refuse_damaged(file: BinaryIO, what: str) -> None:
    """Raise DataError, which `what` opens, where `damage` finds something wrong with a file."""
    refuse_if(damage(file), what)


def refuse_if(wrong: str | None, what: str) -> None:
    """Raise DataError, which `what` opens, where something is wrong with a file."""
    if wrong:
        raise DataError(f"{what} cannot be decoded: {wrong}; replace the file or remove its line")


def damage(file: BinaryIO) -> str | None:
    """Return what is wrong with the structure of a file, or None; it is at its beginning afterwards."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(189)
    check = _check_of(head)
    wrong = check(file, size) if check else None
    file.seek(0)
    return wrong


def cut(needed: int, size: int) -> str:
    """Return the words for a file that should have `needed` bytes."""
    return f"it is truncated: it should have {needed:,} bytes or more, and has {size:,}"


def _check_of(head: bytes) -> Callable[[BinaryIO, int], str | None] | None:
    if head.startswith(_PNG):
        return _png_damage
    if head.startswith(b"OggS"):
        return ogg_damage
    if head.startswith(b"\x1aE\xdf\xa3"):
        return _matroska_damage
    if head[4:8] in (b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"wide", b"skip", b"free"):
        return _mp4_damage
    if head.startswith(b".snd"):
        return _au_damage
    for magic, layout in _CHUNKED.items():
        if head.startswith(magic):
            return lambda file, size: _chunk_damage(file, size, layout)
    if head.startswith(b"FLV"):
        return flv_damage
    if head.startswith(b"\0\0\1\xba"):
        return program_damage
    if head[:1] == b"\x47" and head[188:189] == b"\x47":
        return transport_damage
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return adts_damage
    if head.startswith(b"ID3") or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0 and head[1] & 6):
        return mpeg_audio_damage
    return None


class _Layout(NamedTuple):
    """A format of chunks: the offset of the first, and how a chunk gives its name and length."""

    first: int
    name: int
    length: str
    counts_head: bool
    align: int
    last: bytes  # the name of the chunk with the audio, behind which nothing matters


_CHUNKED = {
    b"RIFF": _Layout(12, 4, "<I", False, 2, b"data"),
    b"RF64": _Layout(12, 4, "<I", False, 2, b"data"),
    b"FORM": _Layout(12, 4, ">I", False, 2, b"SSND"),
    b"caff": _Layout(8, 4, ">Q", False, 1, b"data"),
    b"riff": _Layout(40, 16, "<Q", True, 8, b"data"),
    b"\x30\x26\xb2\x75": _Layout(0, 16, "<Q", True, 1, b"\x36\x26\xb2\x75"),
}


def _chunk_damage(file: BinaryIO, size: int, layout: _Layout) -> str | None:
    at, head, wide = layout.first, layout.name + struct.calcsize(layout.length), None
    while at + head <= size:
        file.seek(at)
        name = file.read(layout.name)
        (length,) = struct.unpack(layout.length, file.read(head - layout.name))
        if name == b"ds64":  # of RF64: the length of "data" in 64 bits
            wide = struct.unpack("<Q", file.read(24)[8:16])[0] if length >= 16 and at + 32 <= size else None
        is_last = name.startswith(layout.last)
        if is_last and length in _UNKNOWN and wide is None:
            return None
        length = wide if is_last and length == 0xFFFFFFFF and wide is not None else length
        if length < head if layout.counts_head else not name.isascii():
            return f"it is damaged at byte {at:,}, where a chunk should begin"
        end = at + length + (0 if layout.counts_head else head)
        if end > size:
            return cut(end, size)
        if is_last:
            return None
        at = -(-end // layout.align) * layout.align
    return None


def _au_damage(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    offset, length = struct.unpack(">II", file.read(24)[4:12]) if size >= 24 else (24, 0)
    return cut(offset + length, size) if length not in _UNKNOWN and offset + length > size else None


def _mp4_damage(file: BinaryIO, size: int) -> str | None:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length == 0:  # to the end of the file
            return None
        if length < 8 or not name.isascii():
            return f"it is damaged at byte {at:,}, where a box should begin"
        if at + length > size:
            return cut(at + length, size)
        at += length
    return None


_PNG = b"\x89PNG\r\n\x1a\n"


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yield of each chunk its name, where it begins and ends, and whether its checksum is right."""
    at = len(_PNG)
    while True:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        checksum = zlib.crc32(name)
        for first in range(0, length, _BLOCK):
            block = file.read(min(_BLOCK, length - first))
            if not block:
                break
            checksum = zlib.crc32(block, checksum)
        is_right = file.read(4) == checksum.to_bytes(4, "big")
        yield name, at, at + 12 + length, is_right
        at += 12 + length
        if name == b"IEND":
            return


def _png_damage(file: BinaryIO, size: int) -> str | None:
    for name, start, end, is_right in _png_chunks(file):
        if end > size:
            return cut(end, size)
        is_extra = name[0] & 0x20 and name.isalpha()
        if not is_right and not is_extra:
            return f"it is damaged: the checksum of its chunk at byte {start:,} is wrong"
    return None


def without_broken_extras(file: BinaryIO) -> BinaryIO:
    """Return the file, or of a PNG whose EXIF, text or other extras have wrong checksums a copy without them."""
    if file.read(8) != _PNG:
        file.seek(0)
        return file
    chunks = list(_png_chunks(file))
    if all(is_right for _, _, _, is_right in chunks):
        file.seek(0)
        return file
    parts = [_PNG]
    for _, start, end, is_right in chunks:
        file.seek(start)
        parts += [file.read(end - start)] if is_right else []
    return io.BytesIO(b"".join(parts))


_SEGMENT, _CLUSTER, _CRC32 = 0x18538067, 0x1F43B675, 0xBF


def _matroska_damage(file: BinaryIO, size: int) -> str | None:
    """Walk the elements of the file, of its segment and of its clusters (RFC 8794, RFC 9559)."""
    at, ends, was_segment, is_length_known = 0, [size], False, False
    while at < size:
        while at >= ends[-1]:
            ends.pop()
        if len(ends) == 1 and was_segment:
            return None  # what is behind the segment is no part of it
        name, length, start = _element(file, at)
        if name is None:
            return f"it is damaged at byte {at:,}, where an element should begin"
        if length is None and name not in (_SEGMENT, _CLUSTER):
            return f"it is damaged at byte {at:,}: an element without a length"
        end = ends[-1] if length is None else start + length
        if end > size:
            return cut(end, size)
        if end > ends[-1]:
            return f"it is damaged at byte {at:,}: an element is longer than what holds it"
        if name in (_SEGMENT, _CLUSTER):
            ends.append(end)
            at, was_segment, is_length_known = start, True, length is not None
            continue
        if name == _CRC32 and is_length_known and not _has_checksum(file, start, ends[-1]):
            return f"it is damaged: the checksum at byte {at:,} is wrong"
        at = end
    return None


def _has_checksum(file: BinaryIO, start: int, end: int) -> bool:
    """Return whether an element that begins with a checksum has it: of what is behind the checksum."""
    file.seek(start)
    wanted, checksum = int.from_bytes(file.read(4), "little"), 0
    for first in range(start + 4, end, _BLOCK):
        checksum = zlib.crc32(file.read(min(_BLOCK, end - first)), checksum)
    return checksum == wanted


def _element(file: BinaryIO, at: int) -> tuple[int | None, int | None, int]:
    """Return the name of an element (None: there is none), its length (None: unknown) and where its content begins."""
    file.seek(at)
    head = file.read(12)
    width = 9 - head[0].bit_length() if head and head[0] else 9
    if width > 4 or len(head) <= width:
        return None, None, at
    name = int.from_bytes(head[:width], "big")
    more = 9 - head[width].bit_length() if head[width] else 9
    if more > 8 or len(head) < width + more:
        return None, None, at
    length = int.from_bytes(head[width : width + more], "big") & ((1 << 7 * more) - 1)
    return name, None if length == (1 << 7 * more) - 1 else length, at + width + more
