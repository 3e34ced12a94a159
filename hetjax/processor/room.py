"""What a row of a batch has room for."""

from __future__ import annotations

import dataclasses

from hetjax.errors import DataError
from hetjax.processor.config import ProcessorConfig
from hetjax.processor.sample import Need
from models.parts.clips import tokens_of_clip
from models.parts.evs import room_for_kept

_NAMES = {
    "tokens": ("tokens in the language model's sequence", "seq_len"),
    "given": ("tokens before pruning", "seq_len or processor.video_rows"),
    "image_rows": ("rows of images", "processor.image_rows"),
    "video_rows": ("rows of videos", "processor.video_rows"),
    "kept": ("video tokens left by pruning", "processor.video_rows"),
    "clips": ("clips of sound", "processor.clips"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """Static sizes of a row.

    Attributes:
        need: the most that the samples of a row may take together.
        image_tokens: tokens that the vision encoder gives for images, padding and prefixes included.
        video_tokens: the same for videos, before pruning.
        audio_tokens: tokens that the encoder of sound gives.
        clip_samples: samples of a clip.
    """

    need: Need
    image_tokens: int
    video_tokens: int
    audio_tokens: int
    clip_samples: int

    @staticmethod
    def of(config: ProcessorConfig, seq_len: int, pruning_rate: float) -> Room:
        """The room of a row whose sequence has `seq_len` rows after pruning."""
        merged = config.resolution.merge**2
        videos = config.video_rows // merged
        kept = room_for_kept(videos, pruning_rate) if pruning_rate else videos
        need = Need(
            tokens=seq_len,
            given=seq_len + videos - kept,
            image_rows=config.image_rows,
            video_rows=config.video_rows,
            kept=kept,
            clips=config.clips,
        )
        return Room(
            need=need,
            image_tokens=config.image_rows // merged,
            video_tokens=videos,
            audio_tokens=config.clips * int(tokens_of_clip(config.clip_samples)),
            clip_samples=config.clip_samples,
        )

    @property
    def sees(self) -> bool:
        """Whether there is a vision encoder."""
        return self.image_tokens + self.video_tokens > 0

    @property
    def hears(self) -> bool:
        """Whether there is an encoder of sound."""
        return self.need.clips > 0

    def check(self, need: Need, where: str) -> None:
        """Raise DataError where a sample does not fit, with all that it takes too much of."""
        over = [
            f"{taken} {_NAMES[name][0]}, more than {most} ({_NAMES[name][1]})"
            for name, taken, most in zip(Need._fields, need, self.need, strict=True)
            if taken > most
        ]
        if over:
            raise DataError(f"{where}: the sample takes {'; '.join(over)}; shorten it, or raise these settings")
