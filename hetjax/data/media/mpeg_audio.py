"""Check the frames of an MPEG audio file (MP3): one behind the other to the end, as many as the first one says."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

_KILOBITS = {  # by (version 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_DAMAGED = "it is damaged at byte {:,}, where a frame should begin"
_PADDING = 4096  # zeros behind the last frame; more are what a broken download leaves
_TAGS_BEHIND = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"3DI")


class _Frame(NamedTuple):
    length: int  # bytes; 0 where only the next frame would tell
    side_information: int  # bytes ahead of what a first frame says of the file
    kind: tuple[int, int, int]  # version, layer and rate, which all frames share


def mpeg_audio_damage(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with the frames of a file, or None."""
    at = _behind_id3(file, 0)
    first = _frame(file, at)
    if first is None:
        return _DAMAGED.format(at) if at < size else "it has no audio"
    promised = _promised_frames(file, at, first)
    count = 0
    while at < size:
        frame = _frame(file, at)
        if frame is None or frame.kind != first.kind:
            behind = _behind_id3(file, at)
            if behind == at:
                if 0 < promised <= count or _is_behind_audio(file, at):
                    break
                return _DAMAGED.format(at) if size - at >= 4 else "it is truncated in the middle of a frame"
            at = behind
            continue
        if not frame.length:
            return None
        at += frame.length
        count += 1
    if at > size:
        return f"it is truncated in the middle of a frame: {at - size:,} bytes are missing"
    if count < promised:
        return f"it is truncated: it should have {promised:,} frames, and has {count:,}"
    return None


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _is_behind_audio(file: BinaryIO, at: int) -> bool:
    """Return whether a tag, or some padding, follows."""
    head = _read(file, at, _PADDING + 1)
    return head.startswith(_TAGS_BEHIND) or (len(head) <= _PADDING and not head.strip(b"\0"))


def _behind_id3(file: BinaryIO, at: int) -> int:
    """Return where an ID3v2 tag ends that begins here, or `at`."""
    while len(head := _read(file, at, 10)) == 10 and head.startswith(b"ID3"):
        length = 0
        for byte in head[6:]:
            length = length << 7 | byte & 0x7F
        at += 10 + length + (10 if head[5] & 0x10 else 0)
    return at


def _frame(file: BinaryIO, at: int) -> _Frame | None:
    """Return what a frame's header says, or None where there is none (ISO 11172-3, 2.4.2.3)."""
    head = _read(file, at, 4)
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bits == 15 or rate == 3:
        return None
    is_first = version == 3
    hertz, padding = _RATES[version][rate], head[2] >> 1 & 1
    bytes_a_second = _KILOBITS[is_first, layer][bits] * 125
    if layer == 1:
        length = (12 * 8 * bytes_a_second // hertz + padding) * 4
    else:
        length = (144 if is_first or layer == 2 else 72) * 8 * bytes_a_second // hertz + padding
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if is_first else (9 if mono else 17)
    return _Frame(length if bits else 0, side, (version, layer, rate))


def _promised_frames(file: BinaryIO, at: int, first: _Frame) -> int:
    """Return how many frames the first one says that there are, or 0. Some encoders count it too, some do not."""
    tag = _read(file, at + 4 + first.side_information, 12)
    if len(tag) < 12 or tag[:4] not in (b"Xing", b"Info") or not tag[7] & 1:
        return 0
    return int.from_bytes(tag[8:], "big")
