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
    """The moments of a film at which frames are taken, in ticks of its clock.

    Attributes:
        tick: seconds.
        shown: when each frame is shown, ascending.
        has_times: whether the file says so; else its frames come at an even rate, one a tick.
        moments: when frames are to be taken.
        exactness: how exactly the clock counts.
        gap: the usual time from one frame to the next.
        zero: second of the clock at which the film begins: its first frame or its audio, whichever is earlier.
    """

    tick: Fraction
    shown: Sequence[int]
    has_times: bool
    moments: Sequence[Fraction]
    exactness: Fraction
    gap: int
    zero: Fraction

    def seconds(self, ticks: int) -> Fraction:
        """Return the second of the film, counted from its beginning."""
        return ticks * self.tick - self.zero


class TakenFrame(NamedTuple):
    """A frame as it is shown, and the tick at which it is."""

    pixels: UInt8[np.ndarray, "H W 3"]
    time: int


def plan_of(container: InputContainer, sampling: VideoSampling, what: str, limits: MediaLimits) -> FramePlan:
    """Read all packets of a film, decode nothing, and plan what to take. Raises DataError."""
    stream = _picture(container, what)
    size = stream.codec_context.width, stream.codec_context.height
    limits.check(what, "image_pixels", size[0] * size[1], f"frames of {size[0]} x {size[1]} pixels")
    stamps, end = _shown_packets(container, stream, what)
    rate = stream.average_rate or stream.guessed_rate or Fraction(1)
    timed = [(stamp, duration) for stamp, duration in stamps if stamp is not None]
    # Packets without a time among others with one are second fields of frames.
    tick = stream.time_base if timed else 1 / rate
    has_times = bool(timed)
    timed = sorted(timed or [(i, 1) for i in range(len(stamps))])
    shown = [stamp for stamp, _ in timed]
    gap = statistics.median_high([later - time for time, later in itertools.pairwise(shown)] or [max(timed[0][1], 1)])
    check_end(container, end, what, last=2 * gap * tick)
    length = shown[-1] - shown[0] + (timed[-1][1] or gap)
    limits.check(what, "video_seconds", float(length * tick), f"{float(length * tick):.0f} seconds")
    exactness = min(Fraction(1), _MILLISECOND / tick)
    moments = sampling.moments(shown[0], shown[-1], (length + exactness) * tick, len(shown))
    pixels = size[0] * size[1] * len(moments)
    limits.check(what, "video_pixels", pixels, f"{len(moments)} frames (frames.max_frames) of {pixels} pixels in all")
    audio = container.streams.audio[:1] if has_times else []
    starts = [start for start in map(start_of, audio) if start is not None]
    return FramePlan(
        tick=tick,
        shown=shown,
        has_times=has_times,
        moments=moments,
        exactness=exactness,
        gap=gap,
        zero=min([shown[0] * tick, *starts]),
    )


def _shown_packets(
    container: InputContainer, stream: VideoStream, what: str
) -> tuple[list[tuple[int | None, int]], Fraction | None]:
    """Return (time and duration of each packet that is shown, second at which the last packet of any stream ends)."""
    stamps, end = [], None
    for packet in container.demux():
        refuse_corrupt(packet, what)
        end = end_of(packet, end)
        # Packets that are discarded are what an edit list hides: they are decoded for what others need of them.
        if packet.stream_index == stream.index and packet.size and not packet.is_discard:
            stamps.append((packet.pts, packet.duration or 0))
    if not stamps:
        raise DataError(f"{what} has no frame that can be decoded; repair or replace the file")
    return stamps, end


def take_frames(container: InputContainer, plan: FramePlan, what: str, limits: MediaLimits) -> list[TakenFrame]:
    """Decode a film, and return of each moment the frame that is shown then, each frame once. Raises DataError."""
    stream = _picture(container, what)
    be_strict(stream, limits)
    taken: list[TakenFrame] = []
    left = list(plan.moments)
    before: tuple[av.VideoFrame, int] | None = None

    def take(frame: av.VideoFrame, time: int) -> None:
        expected = plan.shown[bisect_right(plan.shown, left.pop(0) + plan.exactness) - 1]
        if expected - time > _packets_without_frame(frame, stream) * plan.gap:
            raise DataError(
                f"{what} is damaged or truncated: the frame shown at {float(plan.seconds(expected)):.2f} seconds "
                "cannot be decoded; repair or replace the file"
            )
        if not taken or taken[-1].time != time:
            taken.append(TakenFrame(_pixels(frame, stream, taken), time))

    for number, frame in enumerate(container.decode(stream)):
        refuse_corrupt(frame, what)
        time = _time(frame, number, plan)
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


def _time(frame: av.VideoFrame, number: int, plan: FramePlan) -> int:
    if plan.has_times and frame.pts is not None:
        return frame.pts
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
