"""Plan which frames of a film to take from the times in its packets, and decode them."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image

from hetjax.data.media.ffmpeg import be_strict, check_end, end_of, refuse_corrupt, start_of
from hetjax.data.media.limits import MediaLimits
from hetjax.data.media.orientation import upright_frame
from hetjax.data.media.video_sampling import VideoSampling
from hetjax.errors import DataError

# H, W pixels

_MILLISECOND = Fraction(1, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramePlan:
    """The moments of a film at which frames are taken, in seconds by the clock of the file.

    Attributes:
        shown: when each frame is shown.
        has_times: whether the file says so; else its frames come at an even rate.
        moments: when frames are to be taken.
        zero: when the film begins: its first frame or its audio, whichever is earlier.
        exactness: how exactly the clock counts.
        gap: the usual time from one frame to the next.
    """

    shown: Sequence[Fraction]
    has_times: bool
    moments: Sequence[Fraction]
    zero: Fraction
    exactness: Fraction
    gap: Fraction


class TakenFrame(NamedTuple):
    """A frame as it is shown, and the second at which it is, by the clock of the file."""

    pixels: UInt8[np.ndarray, "H W 3"]
    time: Fraction


def plan_of(container: InputContainer, sampling: VideoSampling, what: str, limits: MediaLimits) -> FramePlan:
    """Read all packets of a film, decode nothing, and plan what to take. Raises DataError."""
    stream = _picture(container, what)
    size = stream.codec_context.width, stream.codec_context.height
    limits.check(what, "image_pixels", size[0] * size[1], f"frames of {size[0]} x {size[1]} pixels")
    stamps, durations, end = [], [], None
    for packet in container.demux():
        refuse_corrupt(packet, what)
        end = end_of(packet, end)
        # Packets that are discarded are what an edit list hides: they are decoded for what others need of them.
        if packet.stream_index == stream.index and packet.size and not packet.is_discard:
            stamps.append(packet.pts)
            durations.append(packet.duration or 0)
    if not stamps:
        raise DataError(f"{what} has no frame that can be decoded; repair or replace the file")
    count = len(stamps)
    has_times = any(stamp is not None for stamp in stamps)
    if has_times:  # those without a time of their own are second fields of frames
        durations = [each for stamp, each in zip(stamps, durations, strict=True) if stamp is not None]
        stamps = [stamp for stamp in stamps if stamp is not None]
    rate = stream.average_rate or stream.guessed_rate or Fraction(1)
    shown = sorted(stamp * stream.time_base for stamp in stamps) if has_times else [i / rate for i in range(count)]
    longest = max(zip(stamps, durations, strict=True))[1] * stream.time_base if has_times else 0
    gap = statistics.median_high([later - time for time, later in itertools.pairwise(shown)] or [1 / rate])
    check_end(container, end, what, last=2 * gap)
    length = shown[-1] - shown[0] + (longest or gap)
    limits.check(what, "video_seconds", length, f"{float(length):.0f} seconds")
    exactness = min(stream.time_base, _MILLISECOND)
    moments = sampling.moments(shown[0], shown[-1], length + exactness, len(shown))
    pixels = size[0] * size[1] * len(moments)
    limits.check(what, "video_pixels", pixels, f"{len(moments)} frames (frames.max_frames) of {pixels} pixels in all")
    starts = [start for start in map(start_of, container.streams.audio[:1]) if start is not None] if has_times else []
    return FramePlan(
        shown=shown,
        has_times=has_times,
        moments=moments,
        zero=min([shown[0], *starts]),
        exactness=exactness,
        gap=gap,
    )


def take_frames(container: InputContainer, plan: FramePlan, what: str, limits: MediaLimits) -> list[TakenFrame]:
    """Decode a film, and return of each moment the frame that is shown then, each frame once. Raises DataError."""
    stream = _picture(container, what)
    be_strict(stream, limits)
    taken: list[TakenFrame] = []
    left = list(plan.moments)
    before: tuple[av.VideoFrame, Fraction] | None = None

    def take(frame: av.VideoFrame, time: Fraction) -> None:
        expected = plan.shown[bisect_right(plan.shown, left.pop(0) + plan.exactness) - 1]
        if expected - time > _packets_without_frame(frame, stream) * plan.gap:
            raise DataError(
                f"{what} is damaged or truncated: the frame shown at {float(expected - plan.zero):.2f} seconds cannot "
                "be decoded; repair or replace the file"
            )
        if not taken or taken[-1].time != time:
            taken.append(TakenFrame(_pixels(frame, stream, taken), time))

    for number, frame in enumerate(container.decode(stream)):
        refuse_corrupt(frame, what)
        time = _time(frame, number, stream, plan)
        while left and left[0] + plan.exactness < time:
            take(*(before or (frame, time)))
        while left and abs(left[0] - time) <= plan.exactness:
            take(frame, time)
        before = frame, time
        if not left:
            break
    if before is None:
        raise DataError(f"{what} has no frame that can be decoded; repair or replace the file")
    while left:
        take(*before)
    return taken


def _picture(container: InputContainer, what: str) -> VideoStream:
    """Return the first stream of pictures that is no cover."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise DataError(f"{what} has no picture; give a file with a video track")


def _packets_without_frame(frame: av.VideoFrame, stream: VideoStream) -> int:
    """Return how many packets in a row may have no frame of their own to be shown."""
    if stream.codec_context.name in ("vp8", "mpeg4"):  # hidden references; empty packets behind two frames in one
        return 2
    return int(frame.interlaced_frame)  # two fields, two packets


def _time(frame: av.VideoFrame, number: int, stream: VideoStream, plan: FramePlan) -> Fraction:
    if plan.has_times and frame.pts is not None:
        return frame.pts * (frame.time_base or stream.time_base)
    return plan.shown[min(number, len(plan.shown) - 1)]


def _pixels(frame: av.VideoFrame, stream: VideoStream, taken: Sequence[TakenFrame]) -> UInt8[np.ndarray, "H W 3"]:
    """Return a frame as it is shown, in the size of those taken before."""
    ratio = stream.sample_aspect_ratio or Fraction(1)
    width = round(frame.width * ratio) if Fraction(1, 8) <= ratio <= 8 else frame.width
    pixels = frame.to_ndarray(format="rgb24", **({"width": width} if width != frame.width else {}))
    pixels = upright_frame(pixels, _display_matrix(frame))
    return _fitted(pixels, taken[0].pixels.shape[:2]) if taken else pixels


def _display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)


def _fitted(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Return a frame of another size fitted into `size` (height, width), in the middle of black."""
    if pixels.shape[:2] == size:
        return pixels
    scale = min(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
    height, width = (max(1, min(round(side * scale), most)) for side, most in zip(pixels.shape[:2], size, strict=True))
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BICUBIC)
    whole = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    whole[top : top + height, left : left + width] = np.asarray(resized)
    return whole
