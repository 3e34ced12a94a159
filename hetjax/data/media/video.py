"""Decode some frames of a video file, with the times they are shown at and its audio."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, UInt8

from hetjax.data.media.audio_track import read_track
from hetjax.data.media.ffmpeg import open_container
from hetjax.data.media.file_structure import refuse_damaged
from hetjax.data.media.limits import MediaLimits
from hetjax.data.media.media_file import Source, named, open_media
from hetjax.data.media.video_frames import plan_of, take_frames
from hetjax.data.media.video_sampling import VideoSampling

# F sampled frames · H, W pixels · L samples of audio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """Frames of a video.

    Attributes:
        frames: the pixels, all of one size.
        times: the second at which each is shown, counted from where the video or its audio begins.
        audio: its audio track at 16 kHz from that same moment on, or None.
    """

    frames: UInt8[np.ndarray, "F H W 3"]
    times: tuple[float, ...]
    audio: Float32[np.ndarray, " L"] | None = None


def read_video(
    source: Source, sampling: VideoSampling, *, with_audio: bool = False, limits: MediaLimits | None = None
) -> Video:
    """Return frames of a file or data URI as RGB, as a player shows them, and with `with_audio` its audio track.

    Frames are turned upright, stretched where pixels are no squares, and chosen by the time at which they are shown:
    neither what an edit list hides nor a variable rate misleads. If their size changes, later ones are fitted into the
    first one's, with black around them.

    Raises:
        DataError: the file is missing, truncated, damaged, too long or too large, or has no picture.
    """
    what, limits = named("video", source), limits or MediaLimits()
    with open_media(source, "video") as file:
        refuse_damaged(file, what)
        with open_container(file, what) as container:
            plan = plan_of(container, sampling, what, limits)
        with open_container(file, what) as container:
            taken = take_frames(container, plan, what, limits)
        audio = read_track(file, what, limits, zero=plan.zero) if with_audio else None
    return Video(
        frames=np.stack([frame.pixels for frame in taken]),
        times=tuple(float(plan.seconds(frame.time)) for frame in taken),
        audio=audio,
    )
