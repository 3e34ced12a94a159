"""The most that one file of media may decode to."""

from __future__ import annotations

import dataclasses
import math

from hetjax.errors import ConfigError, DataError

_MOST_IMAGE_PIXELS = 178_956_970  # Pillow opens no larger image


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """The most that one file of media may decode to; a larger one is a bad sample, and is not decoded.

    Args:
        image_pixels: Pixels of an image, and of one frame of a video.
        audio_seconds: Length of an audio, and of the audio track of a video.
        video_seconds: Length of a video.
        video_pixels: Pixels of all frames together that are taken of a video, each of 3 bytes.
    """

    image_pixels: int = 80_000_000
    audio_seconds: float = 7200.0
    video_seconds: float = 14400.0
    video_pixels: int = 1 << 31

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"processor.limits.{field.name} is {value}; give a number above 0")
        if self.image_pixels > _MOST_IMAGE_PIXELS:
            raise ConfigError(
                f"processor.limits.image_pixels is {self.image_pixels}; give {_MOST_IMAGE_PIXELS} or less, "
                "the largest image that Pillow opens"
            )

    def check(self, what: str, setting: str, amount: float, words: str) -> None:
        """Raise DataError where `amount` (called `words`, a text) is above a setting; `what` opens the message."""
        most = getattr(self, setting)
        if not amount <= most:  # also where it is no number
            raise DataError(
                f"{what} has {words}, more than processor.limits.{setting} {most:g} allows; make it smaller or "
                "raise the setting"
            )
