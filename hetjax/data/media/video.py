"""Decode some frames of a video file, with the times they are shown at and its audio."""

from __future__ import annotations

import dataclasses
import math
import os

import av
import numpy as np
from jaxtyping import Float32, Int, UInt8

from hetjax.data.media.audio import read_track
from hetjax.data.media.held_media import HeldMedia, readable
from hetjax.errors import ConfigError, DataError

# F sampled frames · H, W pixels · L samples of audio


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSampling:
    """The frames of a video that are taken.

    Args:
        fps: Frames taken a second.
        max_frames: Most frames taken; a longer video is sampled more thinly.
    """

    fps: float = 2.0
    max_frames: int = 256

    def __post_init__(self):
        if not (self.fps > 0 and math.isfinite(self.fps)) or self.max_frames < 1:
            raise ConfigError(
                f"video sampling: fps {self.fps} and max_frames {self.max_frames}; give a rate above 0 and 1 or more"
            )

    def indices(self, total: int, rate: float) -> Int[np.ndarray, " F"]:
        """Return which frames to take of `total` shown `rate` a second: evenly spread, from the first to the last."""
        wanted = math.floor(total / rate * self.fps)
        wanted = max(1, min(wanted, self.max_frames, total))
        return np.linspace(0, total - 1, wanted).astype(np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """Frames of a video.

    Attributes:
        frames: the pixels, all of one size.
        indices: which frame of the file each is, from 0.
        rate: frames a second of the file.
        audio: its audio track at 16 kHz, or None.
    """

    frames: UInt8[np.ndarray, "F H W 3"]
    indices: Int[np.ndarray, " F"]
    rate: float
    audio: Float32[np.ndarray, " L"] | None = None

    @property
    def times(self) -> list[float]:
        """Return the second of each frame; a frame lasts whole milliseconds, as the released model counts."""
        return [int(index) * int(1000 / self.rate) / 1000 for index in self.indices]


def read_video(path: str | os.PathLike[str] | HeldMedia, sampling: VideoSampling, *, with_audio: bool = False) -> Video:
    """Return frames of a file as RGB, turned upright, and with `with_audio` its audio track.

    Raises:
        DataError: the file is missing, damaged, or has no picture.
    """
    try:
        with av.open(readable(path)) as container:
            if not container.streams.video:
                raise DataError(f"video '{path}' has no picture; give a file with a video track")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 0) or 1.0
            # What a file says of its number of frames may be missing or wrong: its packets are counted.
            total = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        frames, indices = _decode(path, sampling.indices(max(total, 1), rate))
    except FileNotFoundError as error:
        raise DataError(f"video '{path}' does not exist; give a readable video file") from error
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise DataError(f"video '{path}' cannot be decoded: {reason}; repair or replace the file") from error
    if not frames:
        raise DataError(f"video '{path}' has no frame that can be decoded; repair or replace the file")
    audio = read_track(path, kind="video") if with_audio else None
    return Video(frames=np.stack(frames), indices=np.asarray(indices), rate=rate, audio=audio)


def _decode(
    path: str | os.PathLike[str] | HeldMedia, wanted: Int[np.ndarray, " F"]
) -> tuple[list[np.ndarray], list[int]]:
    """Return (those of the wanted frames that the file has, their indices)."""
    left = {int(index) for index in wanted}
    frames, indices = [], []
    with av.open(readable(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for index, frame in enumerate(container.decode(video=0)):
            if index in left:
                pixels = frame.to_ndarray(format="rgb24")
                frames.append(np.rot90(pixels, -(frame.rotation // 90) % 4) if frame.rotation % 90 == 0 else pixels)
                indices.append(index)
                left.remove(index)
            if not left:
                break
    return frames, indices
