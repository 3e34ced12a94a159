"""Decode the audio track of a film, or of an audio file that libsndfile does not know, by FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.stream import Stream
from jaxtyping import Float32

from hetjax.data.media.ffmpeg import INEXACT, be_strict, check_end, end_of, open_container, refuse_corrupt, start_of
from hetjax.data.media.limits import MediaLimits
from hetjax.data.media.resampling import SAMPLE_RATE
from hetjax.errors import DataError

# L samples

_GAP = Fraction(1, 10)
"""Seconds without audio that are filled with silence; less is how exactly some formats keep time."""


def read_track(
    file: BinaryIO, what: str, limits: MediaLimits, *, zero: Fraction | None = None
) -> Float32[np.ndarray, " L"] | None:
    """Return the first audio track of an open file, one channel at 16 kHz; None where it has none.

    The samples begin where the clock of the file is at `zero` seconds (None: where the first of its streams begins). A
    track that begins later has silence ahead, and where it pauses there is silence too.

    Raises:
        DataError: the track is damaged, truncated or too long; the message opens with `what`.
    """
    with open_container(file, what) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        be_strict(stream, limits)
        if container.duration:
            seconds = container.duration / av.time_base
            limits.check(what, "audio_seconds", seconds, f"{seconds:.0f} seconds")
        if zero is None:
            starts = [start for start in map(start_of, container.streams) if start is not None]
            zero = min(starts, default=Fraction(0))
        parts, end = [], 0
        for start, samples in _runs(container, stream, what, limits, zero):
            silence = max(round(start * SAMPLE_RATE) - end, 0)
            parts += [np.zeros(silence, np.float32), samples]
            end += silence + len(samples)
    return np.concatenate(parts) if end else None


def _runs(
    container: InputContainer, stream: Stream, what: str, limits: MediaLimits, zero: Fraction
) -> Iterator[tuple[Fraction, Float32[np.ndarray, " _"]]]:
    """Yield runs of samples without a gap at 16 kHz, and how many seconds after `zero` each begins."""
    run = None
    for frame in _frames(container, stream, what):
        time = _start_of_frame(frame)
        start = time - zero if time is not None else Fraction(0)
        if run is None or (time is not None and start - run.end > _GAP):
            if run:
                yield run.start, run.samples()
            run = _Run(start)
        run.add(frame)
        limits.check(what, "audio_seconds", float(run.end), f"{float(run.end):.0f} seconds of audio")
    if run:
        yield run.start, run.samples()


class _Run:
    """Frames behind each other, resampled as they come.

    Attributes:
        start: second at which they begin.
        end: second at which they end.
    """

    def __init__(self, start: Fraction):
        self.start = self.end = start
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        self._parts: list[np.ndarray] = []

    def add(self, frame: av.AudioFrame | None) -> None:
        """Append a frame; None ends them."""
        self._parts += [part.to_ndarray()[0] for part in self._resampler.resample(frame)]
        self.end += Fraction(frame.samples, frame.sample_rate) if frame else 0

    def samples(self) -> Float32[np.ndarray, " _"]:
        """Return all samples, one channel at 16 kHz."""
        self.add(None)
        return np.concatenate([np.zeros(0, np.float32), *self._parts]).astype(np.float32)


def _frames(container: InputContainer, stream: Stream, what: str) -> Iterator[av.AudioFrame]:
    """Yield the frames of a stream to its end, which must be where the file says."""
    end = own_end = decoded = None
    for packet in container.demux():
        refuse_corrupt(packet, what)
        end = end_of(packet, end)
        if packet.stream_index != stream.index:
            continue
        own_end = own_end if packet.is_discard else end_of(packet, own_end)
        for frame in packet.decode():
            refuse_corrupt(frame, what)
            start = _start_of_frame(frame)
            decoded = decoded if start is None else start + Fraction(frame.samples, frame.sample_rate)
            yield frame
    check_end(container, end, what)
    if decoded is not None and own_end is not None and own_end - decoded > INEXACT:
        raise DataError(
            f"{what} is damaged: {float(own_end - decoded):.2f} seconds at the end of its audio track cannot be "
            "decoded; repair or replace the file"
        )


def _start_of_frame(frame: av.AudioFrame) -> Fraction | None:
    """Return the second at which a frame begins by the clock of its file, or None."""
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
