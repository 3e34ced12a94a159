"""Decode an audio file to one channel of samples at 16 kHz."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

import numpy as np
import soundfile
from jaxtyping import Float32

from hetjax.data.media.audio_track import read_track
from hetjax.data.media.file_structure import refuse_damaged
from hetjax.data.media.limits import MediaLimits
from hetjax.data.media.media_file import Source, named, open_media
from hetjax.data.media.resampling import resampled
from hetjax.errors import DataError

# L samples · C channels

_BLOCK = 1 << 16  # samples decoded at a time
_RATES = (100, 384_000)
"""Lowest and highest rate of a file: a filter for others would be as long as the audio."""


def read_audio(source: Source, limits: MediaLimits | None = None) -> Float32[np.ndarray, " L"]:
    """Return the audio of a file or data URI in [-1, 1], its channels averaged, at 16 kHz.

    WAV, FLAC, OGG and MP3 are read by libsndfile and resampled by a polyphase filter; of other files, videos
    among them, the first audio track is decoded and resampled by FFmpeg, with silence ahead where it begins late.

    Raises:
        DataError: the file is missing, truncated, damaged, too long, has no audio, or samples that are no numbers.
    """
    what, limits = named("audio", source), limits or MediaLimits()
    with open_media(source, "audio") as file:
        refuse_damaged(file, what)
        try:
            opened = soundfile.SoundFile(file)
        except soundfile.LibsndfileError:
            audio = read_track(file, what, limits)
        else:
            with opened:
                audio = _decoded(opened, file, what, limits)
    if audio is None or not len(audio):
        raise DataError(f"{what} holds no audio; give a file with an audio track")
    if not np.all(np.isfinite(audio)):
        raise DataError(f"{what} has samples that are no finite numbers; repair or replace the file")
    return audio


def _decoded(opened: soundfile.SoundFile, file: BinaryIO, what: str, limits: MediaLimits) -> Float32[np.ndarray, " L"]:
    rate, frames = opened.samplerate, opened.frames
    if not _RATES[0] <= rate <= _RATES[1]:
        raise DataError(f"{what} has {rate} samples a second; give {_RATES[0]} to {_RATES[1]}")
    limits.check(what, "audio_seconds", frames / rate, f"{frames / rate:.0f} seconds")
    checksum = _FlacChecksum(opened)
    parts, count = [], 0
    try:
        while len(block := opened.read(_BLOCK, dtype="float32", always_2d=True)):
            checksum.add(block)
            parts.append(block.mean(axis=1))
            count += len(block)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"{what} cannot be decoded: {error}; repair or replace the file") from error
    if count != frames:
        raise DataError(
            f"{what} is truncated or damaged: it should have {frames:,} samples, and {count:,} can be decoded; "
            "repair or replace the file"
        )
    if not checksum.matches(file):
        raise DataError(f"{what} is damaged: its samples have another MD5 than it says; repair or replace the file")
    return resampled(np.concatenate(parts) if parts else np.zeros(0, np.float32), rate)


class _FlacChecksum:
    """The MD5 of the samples of a FLAC file, which its header gives, too (RFC 9639, 8.2)."""

    def __init__(self, opened: soundfile.SoundFile):
        bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(opened.subtype) if opened.format == "FLAC" else None
        self._bits, self._hash = bits, hashlib.md5(usedforsecurity=False)

    def add(self, block: Float32[np.ndarray, "L C"]) -> None:
        """Add samples, which float32 holds exactly."""
        if self._bits:
            numbers = np.rint(block.astype(np.float64) * 2 ** (self._bits - 1)).astype("<i4")
            octets = numbers[..., None].view(np.uint8)[..., : self._bits // 8]
            self._hash.update(np.ascontiguousarray(octets))

    def matches(self, file: BinaryIO) -> bool:
        """Return whether the samples are those that the header tells, or it tells nothing."""
        if not self._bits:
            return True
        file.seek(0)
        head = file.read(42)
        if not head.startswith(b"fLaC") or not any(head[26:42]):
            return True
        # FLAC of other widths (12, 20 bits) comes scaled up to whole bytes; its sum is of unscaled numbers.
        width = ((head[20] & 1) << 4 | head[21] >> 4) + 1
        return width != self._bits or head[26:42] == self._hash.digest()
