"""Choose the moments of a video at which frames are taken."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

from hetjax.errors import ConfigError


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

    def moments(self, first: int, last: int, seconds: Fraction, count: int) -> list[Fraction]:
        """Return the ticks at which to take frames: evenly spread, from the first frame to the last.

        Args:
            first: tick at which the first frame is shown.
            last: tick at which the last frame is shown.
            seconds: how long all of them are shown.
            count: number of frames.
        """
        wanted = max(1, min(math.floor(seconds * Fraction(self.fps)), self.max_frames, count))
        return (
            [first + Fraction((last - first) * i, wanted - 1) for i in range(wanted)]
            if wanted > 1
            else [Fraction(first)]
        )
