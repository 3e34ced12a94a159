"""Check formats that are streams of small packets: MPEG transport and program streams, FLV and ADTS (AAC)."""

from __future__ import annotations

from typing import BinaryIO

_CUT = "it is truncated in the middle of a packet"


def transport_damage(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with an MPEG transport stream, whose packets have 188 bytes and begin with 0x47."""
    file.seek(0)
    at = 0
    while block := file.read(188 * 5000):
        wrong = next((i for i in range(0, len(block), 188) if block[i] != 0x47), None)
        if wrong is not None:
            return f"it is damaged at byte {at + wrong:,}, where a packet should begin"
        at += len(block)
    return _CUT if size % 188 else None


def program_damage(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with an MPEG program stream, whose packets give their length (ISO 13818-1, 2.5)."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(14)
        if head[:4] == b"\0\0\1\xb9" or not head.strip(b"\0"):  # the end, or padding behind it
            return None
        if len(head) < 6:
            return _CUT
        if head[:3] != b"\0\0\1" or head[3] < 0xB9:
            return f"it is damaged at byte {at:,}, where a packet should begin"
        if head[3] != 0xBA:
            at += 6 + int.from_bytes(head[4:6], "big")
        elif head[4] >> 6 == 1 and len(head) == 14:
            at += 14 + (head[13] & 7)
        else:  # MPEG-1
            at += 12
    return _CUT if at > size else None


def flv_damage(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with an FLV file: each tag gives its length, and the next one repeats it."""
    file.seek(5)
    at = int.from_bytes(file.read(4), "big") + 4
    while at < size:
        file.seek(at)
        length = int.from_bytes(file.read(4)[1:], "big")
        at += 11 + length + 4
        if at > size:
            return _CUT
        file.seek(at - 4)
        if int.from_bytes(file.read(4), "big") != 11 + length:
            return f"it is damaged before byte {at:,}: a tag has two lengths"
    return None


def adts_damage(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with a file of AAC frames that give their lengths (ISO 13818-7, 6.2)."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(7)
        if head.startswith(b"TAG"):
            return None
        length = int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF if len(head) == 7 else 0
        if len(head) == 7 and (head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or length < 7):
            return f"it is damaged at byte {at:,}, where a frame should begin"
        if len(head) < 7 or at + length > size:
            return _CUT
        at += length
    return None
