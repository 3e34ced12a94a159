"""Tiny films and sounds, made as cameras and editors make them: turned, edited, uneven, late."""

from __future__ import annotations

import io
import struct
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

MILLISECONDS = Fraction(1, 1000)
RATE = 16000


def grey(level, size=(32, 48)):
    return np.full((*size, 3), level, np.uint8)


def corners(size=(32, 48)):
    """A picture whose corners differ: red, green / blue, white."""
    height, width = size
    picture = np.zeros((*size, 3), np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    picture[height // 2 :, width // 2 :] = (255, 255, 255)
    return picture


def tone(hertz, seconds, rate=RATE):
    return (np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate) / 2).astype(np.float32)


def film(
    pictures, *, codec="mpeg4", container="mp4", rate=10, times=None, audio=None, audio_from=0.0, **options
) -> bytes:
    """The bytes of a film; `times` are milliseconds, `audio_from` the second at which its audio begins."""
    with tempfile.NamedTemporaryFile() as file:  # no buffer: an index moved to the front is read back by name
        _write_film(file.name, pictures, codec, container, rate, times, audio, audio_from, options)
        return Path(file.name).read_bytes()


def _write_film(name, pictures, codec, container, rate, times, audio, audio_from, options):
    with av.open(name, "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=rate)
        height, width = pictures[0].shape[:2]
        stream.height, stream.width, stream.thread_count = height, width, 1
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec in ("mpeg4", "mjpeg"):
            stream.bit_rate = 4_000_000
        track = None
        if audio is not None:
            track = out.add_stream("libopus" if container == "webm" else "aac", rate=48000, layout="mono")
        if times is not None:
            stream.codec_context.time_base = MILLISECONDS
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], MILLISECONDS
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if track is not None:
            wave = np.repeat(audio, 3)[None]  # 48 kHz
            for first in range(0, wave.shape[1], 960):
                part = av.AudioFrame.from_ndarray(wave[:, first : first + 960], format="flt", layout="mono")
                part.rate, part.time_base = 48000, Fraction(1, 48000)
                part.pts = first + round(audio_from * 48000)
                out.mux(track.encode(part))
            out.mux(track.encode())


def track(samples, codec, container) -> bytes:
    """The bytes of audio that FFmpeg encodes, at 48 kHz."""
    buffer, wave = io.BytesIO(), np.repeat(samples, 3)[None]
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48000, layout="mono")
        for first in range(0, wave.shape[1], 1024):
            part = av.AudioFrame.from_ndarray(wave[:, first : first + 1024], format="flt", layout="mono")
            part.rate, part.time_base, part.pts = 48000, Fraction(1, 48000), first
            out.mux(stream.encode(part))
        out.mux(stream.encode())
    return buffer.getvalue()


def sound(samples, kind, subtype=None, rate=RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


_PARENTS = (b"moov", b"trak", b"edts", b"mdia")


def change_boxes(data: bytes, name: bytes, change) -> bytes:
    """An MP4 whose boxes of a name have other content: `change(content)`, which may be None to drop the box.

    Its moov is at the end, so that nothing that moves is pointed to."""
    result, at = b"", 0
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found, content = data[at + 4 : at + 8], data[at + 8 : at + length]
        if found == name:
            content = change(content)
        elif found in _PARENTS:
            content = change_boxes(content, name, change)
        if content is not None:
            result += struct.pack(">I4s", 8 + len(content), found) + content
        at += length
    return result


def with_matrix(data: bytes, a, b, c, d) -> bytes:
    """An MP4 whose tracks are shown through a matrix (ISO 14496-12, 6.2.2)."""
    numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    return change_boxes(data, b"tkhd", lambda old: old[:40] + struct.pack(">9i", *numbers) + old[76:])


def with_edit(data: bytes, *, first: Fraction, seconds: Fraction) -> bytes:
    """An MP4 of one track that shows only some seconds of it, from `first` on."""
    scales = {}

    def note(kind):
        def keep(content):
            scales[kind] = struct.unpack(">I", content[12:16])[0]
            return content

        return keep

    change_boxes(data, b"mvhd", note("movie"))
    change_boxes(data, b"mdhd", note("track"))
    data = change_boxes(data, b"edts", lambda _: None)
    entry = struct.pack(">IiI", int(seconds * scales["movie"]), int(first * scales["track"]), 1 << 16)
    box = struct.pack(">I4s", 24 + len(entry), b"edts") + struct.pack(">I4sII", 16 + len(entry), b"elst", 0, 1) + entry
    return change_boxes(data, b"trak", lambda content: content + box)
