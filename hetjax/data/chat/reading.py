"""Images, videos and sound of a conversation, given as paths or as arrays, to what encoders take."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetjax.data.chat.messages import Part
from hetjax.data.media import SAMPLE_RATE, Video, VideoSampling, read_audio, read_image, read_video
from hetjax.errors import DataError
from hetjax.models.parts.audio_clips import cut_clips, tokens_of_clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """Clips of one sound at 16 kHz, none without a token."""

    clips: tuple[Float32[np.ndarray, " samples"], ...]

    @property
    def tokens(self) -> list[int]:
        """Encoder tokens of each clip."""
        return [tokens_of_clip(len(clip)) for clip in self.clips]

    @property
    def ends(self) -> list[float]:
        """The second at which each clip ends."""
        return [float(end) / SAMPLE_RATE for end in np.cumsum([len(clip) for clip in self.clips])]


def read_part(
    part: Part, where: str, *, frames: VideoSampling, with_sound: bool
) -> UInt8[np.ndarray, "H W 3"] | Video | Float32[np.ndarray, " samples"]:
    """The pixels of an image, the frames of a video, or the samples of a sound.

    Beside paths it takes an image as uint8 [H, W, 3], a video as `Video` or uint8 [F, H, W, 3] shown `frames.fps`
    frames a second, and sound as floats [samples] at 16 kHz.

    Raises:
        DataError: the file or array cannot be taken; the message opens with `where`.
    """
    value = part.value
    try:
        if part.kind == "image":
            return read_image(value) if _is_path(value) else _pixels(value, 3, "an image", "uint8 [height, width, 3]")
        if part.kind == "video":
            if _is_path(value):
                return read_video(value, frames, with_sound=with_sound)
            if isinstance(value, Video):
                return value
            pixels = _pixels(value, 4, "a video", "a Video, or uint8 [frames, height, width, 3]")
            return Video(frames=pixels, indices=np.arange(len(pixels)), rate=frames.fps)
        return read_audio(value) if _is_path(value) else _samples(value)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def cut_sound(sound: Float32[np.ndarray, " samples"], longest: int, where: str) -> Sound:
    """Clips of `longest` samples at most. Raises DataError for sound without a token."""
    clips = tuple(clip for clip in cut_clips(sound, longest) if tokens_of_clip(len(clip)))
    if not clips:
        raise DataError(
            f"{where}: a sound has {len(sound)} samples at {SAMPLE_RATE} Hz, too few for a token; give "
            "10 milliseconds or more"
        )
    return Sound(clips=clips)


def whole_tubelets(frames: Sequence[np.ndarray] | np.ndarray, per_tubelet: int) -> np.ndarray:
    """Frames with the last one repeated until tubelets are full."""
    missing = math.ceil(len(frames) / per_tubelet) * per_tubelet - len(frames)
    return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else np.asarray(frames)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _pixels(value: Any, dims: int, what: str, wanted: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != dims or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise DataError(f"{what} is {array.dtype} of shape {array.shape}; give a path, or {wanted}")
    return array


def _samples(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating) or not np.all(np.isfinite(array)):
        raise DataError(
            f"a sound is {array.dtype} of shape {array.shape}; give a path, or finite floats [samples] at 16 kHz"
        )
    return array.astype(np.float32)
