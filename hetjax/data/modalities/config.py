"""Settings of the processor, which makes arrays of conversations with media."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeVar, get_args

from hetjax.data.media import SAMPLE_RATE, MediaLimits, VideoSampling
from hetjax.data.modalities.prompt_order import AudioInVideo
from hetjax.errors import ConfigError
from hetjax.models.dynamic_resolution import DynamicResolution

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Square = Literal["stretch", "crop", "pad"]

Setting = bool | int | float | str
Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """Settings by which conversations with media become arrays of fixed shapes.

    Args:
        images: Images in a row of the batch, for a vision encoder that takes all of them in one size.
        square: How an image of any shape becomes one of them: stretched; by crop, its shorter side as long as theirs
            and the middle taken; or by pad, with bars of pixel_mean.
        max_shift: Most pixels by which each such image is moved at random in training, up or down and left or right.
        image_rows: Patch rows (positions of a vision encoder's input: patches, prefix tokens, padding) for all images
            of a row of the batch, for an encoder that takes images of any size.
        video_rows: The same for the tubelets of all videos.
        clips: Clips of audio in a row of the batch.
        clip_seconds: Longest clip; longer audio is split into several.
        others: Settings of modalities beside image, video and audio, by name, e.g. {depth: {maps: 2}}.
        resolution: How large images and frames become.
        frames: Which frames of a video are taken.
        limits: The most that one file of media may decode to; a sample with a larger one is bad.
        audio_in_video: Where the audio of a video stands: none (it is not read), after_marker (ahead of the frames),
            after_frames, or interleaved (each clip behind the frames of its time).
        video_prefix: Text ahead of every video, such as "This is a video:\\n".
        context: Tokens that the images of a sample share with its text, which limits their size; null for the length of
            the sequence.
        pixel_mean: Mean of each channel, subtracted from pixels between 0 and 1.
        pixel_std: Standard deviation of each channel, which divides them.
        chat_template: Folder of a checkpoint whose chat template is used; null for that of the tokenizer's folder, or
            the built-in one.
        template_options: What the template may ask for, e.g. {enable_thinking: false}.
        packed: The most samples that share a row of the batch in training; 1 packs none.
        packing_window: Samples that still wait when the rows of a packed batch are chosen, by best fit: more leave less
            padding, and hold more in memory.
        balance: Whether images, tubelets and clips are spread over the shards of their encoder by what they cost, in
            place of lying in the rows of their samples. In a job of several processes each then loads all samples.
    """

    images: int = 0
    square: Square = "stretch"
    max_shift: int = 0
    image_rows: int = 0
    video_rows: int = 0
    clips: int = 0
    clip_seconds: float = 30.0
    others: dict[str, dict[str, Setting]] = dataclasses.field(default_factory=dict)
    resolution: DynamicResolution = dataclasses.field(default_factory=DynamicResolution)
    frames: VideoSampling = dataclasses.field(default_factory=VideoSampling)
    limits: MediaLimits = dataclasses.field(default_factory=MediaLimits)
    audio_in_video: AudioInVideo = "none"
    video_prefix: str = ""
    context: int | None = None
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    pixel_std: tuple[float, float, float] = CLIP_STD
    chat_template: str | None = None
    template_options: dict[str, Any] = dataclasses.field(default_factory=dict)  # values of YAML: the template's affair
    packed: int = 1
    balance: bool = False
    packing_window: int = 128

    def __post_init__(self):
        least = {
            "images": 0,
            "max_shift": 0,
            "image_rows": 0,
            "video_rows": 0,
            "clips": 0,
            "packed": 1,
            "packing_window": 0,
            "context": 1,
        }
        for name, least_value in least.items():
            value = getattr(self, name)
            if value is not None and value < least_value:
                raise ConfigError(f"processor.{name} is {value}; give {least_value} or more")
        for name, choices in (("audio_in_video", get_args(AudioInVideo)), ("square", get_args(Square))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"processor.{name} is {getattr(self, name)!r}; give one of {', '.join(choices)}")
        for name in ("image_rows", "video_rows"):
            if getattr(self, name) % self.resolution.merge**2:
                raise ConfigError(
                    f"processor.{name} is {getattr(self, name)}; give a multiple of merge² = "
                    f"{self.resolution.merge**2}, the patch rows that make a token"
                )
        if not (math.isfinite(self.clip_seconds) and self.clip_samples > 0):
            raise ConfigError(f"processor.clip_seconds is {self.clip_seconds}; give a length above 0")

    @property
    def clip_samples(self) -> int:
        """Return the samples of the longest clip."""
        return int(self.clip_seconds * SAMPLE_RATE)

    def settings_of(self, modality: str, kind: type[Settings]) -> Settings:
        """Return a modality's settings in `others` as such a dataclass. Raises ConfigError for a setting it lacks."""
        given = self.others.get(modality, {})
        known = [field.name for field in dataclasses.fields(kind)]
        for name in given:
            if name not in known:
                raise ConfigError(f"processor.others.{modality} has no setting {name}; it has {', '.join(known)}")
        return kind(**given)

    def with_settings(self, modality: str, **changes: Setting) -> ProcessorConfig:
        """Return these settings with other values for a modality of `others`."""
        changed = {**self.others.get(modality, {}), **changes}
        return dataclasses.replace(self, others={**self.others, modality: changed})
