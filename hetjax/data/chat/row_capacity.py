"""What a row of a batch has room for."""

from __future__ import annotations

import dataclasses

from hetjax.data.chat.config import ProcessorConfig
from hetjax.data.chat.sample import Need
from hetjax.errors import ConfigError, DataError
from hetjax.models.parts.audio_clips import tokens_of_clip
from hetjax.models.parts.video_pruning import room_for_kept
from hetjax.models.patch_rows import PatchRows

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
        config: the settings they come from.
        image_rows, video_rows: how the vision encoder takes images and tubelets (`RadioConfig.image_rows`,
            `.video_rows`); None where it takes none.
        need: the most that the samples of a row may take together.
        image_tokens: tokens that the vision encoder gives for images, padding and prefixes included.
        video_tokens: the same for videos, before pruning.
        audio_tokens: tokens that the encoder of sound gives.
        clip_samples: samples of a clip.
    """

    config: ProcessorConfig
    image_rows: PatchRows | None
    video_rows: PatchRows | None
    need: Need
    image_tokens: int
    video_tokens: int
    audio_tokens: int
    clip_samples: int

    @staticmethod
    def of(
        config: ProcessorConfig,
        seq_len: int,
        *,
        image_rows: PatchRows | None = None,
        video_rows: PatchRows | None = None,
        pruning_rate: float = 0.0,
    ) -> Room:
        """The room of a row whose sequence has `seq_len` rows after pruning.

        Raises ConfigError where `config` has rows for what the encoder does not take, or patches of another size.
        """
        for name, layout in (("image_rows", image_rows), ("video_rows", video_rows)):
            _check_layout(config, name, layout)
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
            config=config,
            image_rows=image_rows,
            video_rows=video_rows,
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


def _check_layout(config: ProcessorConfig, name: str, layout: PatchRows | None) -> None:
    if getattr(config, name) and layout is None:
        raise ConfigError(f"processor.{name} is {getattr(config, name)}, but the model takes none; set it to 0")
    sizes = (config.resolution.patch_size, config.resolution.merge)
    if getattr(config, name) and sizes != (layout.patch_size, layout.merge):
        raise ConfigError(
            f"processor.resolution has patch_size {sizes[0]} and merge {sizes[1]}, but the vision encoder "
            f"{layout.patch_size} and {layout.merge}; set both alike"
        )
