"""Decode an audio file to one channel of samples at 16 kHz."""

from __future__ import annotations

import math
import os

import av
import numpy as np
import soundfile
from jaxtyping import Float32

from hetjax.data.media.held_media import HeldMedia, readable
from hetjax.errors import DataError

# L samples

SAMPLE_RATE = 16000
"""Samples a second that audio encoders take."""


def read_audio(path: str | os.PathLike[str] | HeldMedia) -> Float32[np.ndarray, " L"]:
    """Return the audio of a file in [-1, 1], its channels averaged, at 16 kHz.

    WAV, FLAC, OGG and MP3 are read by libsndfile and resampled by a polyphase filter; of other files, videos
    among them, the first audio track is decoded and resampled by FFmpeg.

    Raises:
        DataError: the file is missing, damaged, has no audio, or none of its samples can be read.
    """
    try:
        if not isinstance(path, HeldMedia):
            with open(path, "rb"):
                pass
    except OSError as error:
        raise DataError(f"audio '{path}' cannot be opened: {error.strerror}; give a readable audio file") from error
    try:
        samples, rate = soundfile.read(readable(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        audio = read_track(path, kind="audio")
    else:
        audio = resampled(samples.mean(axis=1), rate)
    if audio is None or not len(audio):
        raise DataError(f"audio '{path}' holds no audio; give a file with an audio track")
    if not np.all(np.isfinite(audio)):
        raise DataError(f"audio '{path}' has samples that are no finite numbers; repair or replace the file")
    return audio


def resampled(samples: Float32[np.ndarray, " L"], rate: int) -> Float32[np.ndarray, " R"]:
    """Resample samples taken `rate` times a second to 16 kHz."""
    if rate == SAMPLE_RATE or not len(samples):
        return np.ascontiguousarray(samples, np.float32)
    shared = math.gcd(rate, SAMPLE_RATE)
    from scipy.signal import resample_poly  # only here: it takes a second to import

    return resample_poly(samples, SAMPLE_RATE // shared, rate // shared).astype(np.float32)


def read_track(path: str | os.PathLike[str] | HeldMedia, *, kind: str) -> Float32[np.ndarray, " L"] | None:
    """Return the first audio track of a file that FFmpeg knows, one channel at 16 kHz; None where it has none.

    `kind` ("audio", "video") is what an error calls the file.
    """
    try:
        with av.open(readable(path)) as container:
            if not container.streams.audio:
                return None
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
            parts += resampler.resample(None)
            audio = [part.to_ndarray()[0] for part in parts]
    except (av.error.FFmpegError, ValueError) as error:
        raise DataError(f"{kind} '{path}': its audio cannot be decoded: {error}; repair or replace the file") from error
    return np.concatenate(audio).astype(np.float32) if audio else None
