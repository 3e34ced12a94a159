"""Open films and audio tracks with FFmpeg: from an open file alone, and strictly, so that damage is an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import av
from av.container import InputContainer
from av.frame import Frame
from av.packet import Packet
from av.stream import Stream

from hetjax.data.media.limits import MediaLimits
from hetjax.errors import DataError

# Formats that hold their media themselves. Others are lists of what to open (HLS, DASH, concat) or to connect to (SDP).
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,mjpeg,gif,apng,"
    "ogg,wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,amr,amrnb,amrwb,asf,ape,wv,tta,dts,mxf,dv,rm,swf,yuv4mpegpipe,"
    "webp_pipe"
)
_CONTAINER_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
# Tags that are no UTF-8 must not fail; from PyAV 19 on they never do.
_TAGS = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
_FORMATS_WITH_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "wv", "tta"}
"""Formats whose header gives the length; for others FFmpeg guesses it."""
INEXACT = Fraction(1, 4)
"""Seconds by which the times in a file may contradict each other: encoders and containers round differently."""
_DECODER_OPTIONS = {"err_detect": "crccheck+bitstream+buffer+explode"}


@contextlib.contextmanager
def open_container(file: BinaryIO, what: str) -> Iterator[InputContainer]:
    """Open a file that may hold streams; `what` ("video 'a.mp4'") opens the message of any error of FFmpeg.

    Raises:
        DataError: FFmpeg knows no such file, or what is done with it in the context fails.
    """
    file.seek(0)
    try:
        with av.open(file, container_options=_CONTAINER_OPTIONS, **_TAGS) as container:
            yield container
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{what} cannot be decoded: {reason}; repair or replace the file") from error


def be_strict(stream: Stream, limits: MediaLimits) -> None:
    """Let a stream's decoder fail where it would guess, and refuse frames that are too large."""
    options = {**_DECODER_OPTIONS, "max_pixels": str(limits.image_pixels)}
    stream.codec_context.options = options if stream.type == "video" else _DECODER_OPTIONS
    stream.thread_type = "AUTO"


def start_of(stream: Stream) -> Fraction | None:
    """Return the second at which a stream begins by the file's clock, or None where the file does not say."""
    return None if stream.start_time is None else stream.start_time * stream.time_base


def refuse_corrupt(piece: Packet | Frame, what: str) -> None:
    """Raise DataError for a packet or a frame of which FFmpeg says that it is damaged."""
    if piece.is_corrupt:
        raise DataError(f"{what} is damaged or truncated, FFmpeg says; repair or replace the file")


def end_of(packet: Packet, end: Fraction | None) -> Fraction | None:
    """Return the later of `end` and the second at which a packet ends by the clock of the file."""
    if packet.pts is None:
        return end
    own = (packet.pts + (packet.duration or 0)) * packet.time_base
    return own if end is None else max(own, end)


def check_end(container: InputContainer, end: Fraction | None, what: str, *, last: Fraction = INEXACT) -> None:
    """Raise DataError where the packets of a file `end` earlier than its header says.

    `last` is how long the last of them may go on beyond what its packet says.
    """
    if not container.duration or container.format.name not in _FORMATS_WITH_LENGTH:
        return
    start = Fraction(container.start_time or 0, av.time_base)
    promised = start + Fraction(container.duration, av.time_base)
    got = start if end is None else end
    if promised - got > max(last, INEXACT, (promised - start) / 50):
        raise DataError(
            f"{what} is truncated: it should last {float(promised - start):.2f} seconds, and what it has ends after "
            f"{float(got - start):.2f}; repair or replace the file"
        )
