"""Prepare audio at 16 kHz as clips of an audio encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from hetjax.data.media import SAMPLE_RATE, is_source, read_audio
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.modalities.modality import (
    ArraySpec,
    Budget,
    EncoderInputs,
    Medium,
    Modality,
    Placeholder,
    PromptPart,
    Resource,
)
from hetjax.data.modalities.prompt_order import audio_items
from hetjax.errors import ConfigError, DataError
from hetjax.models.parts.audio_clips import clip_token_positions, split_clips, stack_clips, tokens_of_clip

_SIZED_TO = SAMPLE_RATE // 10  # a batch of one prompt has clips of whole tenths of a second


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioClips:
    """Clips of one audio at 16 kHz, each long enough for a token."""

    clips: tuple[Float32[np.ndarray, " samples"], ...]

    @property
    def tokens(self) -> list[int]:
        """Return the encoder tokens of each clip."""
        return [tokens_of_clip(len(clip)) for clip in self.clips]

    @property
    def ends(self) -> list[float]:
        """Return the second at which each clip ends."""
        return [float(end) / SAMPLE_RATE for end in np.cumsum([len(clip) for clip in self.clips])]

    @property
    def media(self) -> list[Medium]:
        """Return the clips as media."""
        return [Medium(Audio.name, clip, tokens) for clip, tokens in zip(self.clips, self.tokens, strict=True)]


class Audio(Modality[AudioClips]):
    """Audio of one channel at 16 kHz, split into clips that the encoder takes one by one."""

    name = "audio"
    placeholder = Placeholder(
        name="audio",
        module="audio",
        token="<so_embedding>",
        start="<so_start>",
        end="<so_end>",
        id_keys=("sound_context_token_id", "audio_token_id"),
    )
    resources = (Resource("clips", "clips of audio", "processor.clips"),)
    suffixes = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac")

    def __init__(self, config: ProcessorConfig, encoder: object | None):
        if config.clips and encoder is None:
            raise ConfigError(f"processor.clips is {config.clips}, but the model has no audio encoder; set it to 0")
        self._config = config
        self.capacity = {"clips": config.clips}
        self.tokens = config.clips * int(tokens_of_clip(config.clip_samples))

    @classmethod
    def sized(
        cls, config: ProcessorConfig, amounts: Mapping[str, int], arrays: Sequence[np.ndarray] = ()
    ) -> ProcessorConfig:
        """Return the settings with so many clips, just long enough; without one no video gives its audio."""
        longest = max(map(len, arrays), default=0)
        # Half a sample more, so that seconds come back as so many samples.
        seconds = (min(-(-longest // _SIZED_TO) * _SIZED_TO, config.clip_samples) + 0.5) / SAMPLE_RATE
        return dataclasses.replace(
            config,
            clips=amounts["clips"],
            clip_seconds=seconds if longest else config.clip_seconds,
            audio_in_video=config.audio_in_video if amounts["clips"] else "none",
        )

    def read(self, value: object) -> AudioClips:
        """Read a file or data URI, or floats [samples] at 16 kHz, as clips."""
        samples = read_audio(value, self._config.limits) if is_source(value) else _check_samples(value)
        return split_audio(samples, self._config.clip_samples)

    def prepare(self, media: Sequence[AudioClips], budget: Budget) -> list[PromptPart]:
        """Prepare each audio with the tokens of all its clips behind each other."""
        return [
            PromptPart(items=audio_items(sum(audio.tokens)), media=audio.media, use={"clips": len(audio.clips)})
            for audio in media
        ]

    def shapes(self) -> dict[str, ArraySpec]:
        """Return waveforms [clips, samples] and lengths [clips]."""
        config = self._config
        return {
            "waveforms": ArraySpec((config.clips, config.clip_samples), np.float32),
            "lengths": ArraySpec((config.clips,), np.int32),
        }

    def encoder_inputs(self, arrays: Sequence[Float32[np.ndarray, " samples"]]) -> EncoderInputs:
        """Return clips padded to the longest one, and their lengths."""
        waveforms, lengths = stack_clips(arrays, self._config.clips, self._config.clip_samples)
        tokens, clip = clip_token_positions(lengths, self._config.clip_samples)
        own = [tokens[clip == number] for number in range(len(arrays))]
        return EncoderInputs({"waveforms": waveforms, "lengths": lengths}, own)


def split_audio(samples: Float32[np.ndarray, " samples"], longest: int) -> AudioClips:
    """Split audio into clips of `longest` samples at most. Raises DataError for audio without a token."""
    clips = tuple(clip for clip in split_clips(samples, longest) if tokens_of_clip(len(clip)))
    if not clips:
        raise DataError(
            f"an audio has {len(samples)} samples at {SAMPLE_RATE} Hz, too few for a token; give "
            "10 milliseconds or more"
        )
    return AudioClips(clips=clips)


def _check_samples(value: object) -> Float32[np.ndarray, " samples"]:
    array = np.asarray(value)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating) or not np.all(np.isfinite(array)):
        raise DataError(
            f"an audio is {array.dtype} of shape {array.shape}; give a path, or finite floats [samples] at 16 kHz"
        )
    return array.astype(np.float32)
