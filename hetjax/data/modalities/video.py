"""Prepare videos: frames as tubelets of a vision encoder, their times as text, and their audio as clips.

Special to videos: one may hold a second modality (`processor.audio_in_video`), and a vision encoder may prune
its tokens, so that a row has more placeholders than the language model's sequence has positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped

from hetjax.data.media import Video as DecodedVideo
from hetjax.data.media import is_source, read_video
from hetjax.data.modalities.audio import AudioClips, split_audio
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.modalities.modality import ArraySpec, Budget, EncoderInputs, Medium, Modality, PromptPart, Resource
from hetjax.data.modalities.patches import (
    VISION,
    check_patches,
    check_pixels,
    patch_arrays,
    patch_shapes,
    sequence_cost,
    sized_pixels,
    token_grid,
)
from hetjax.data.modalities.prompt_order import TimeLines, video_items
from hetjax.graph import Edge
from hetjax.models.parts.video_pruning import capacity_for_kept, keep_count
from hetjax.models.patch_rows import PatchRows

# F frames · H, W pixels


class FramesAndAudio(NamedTuple):
    """Frames of a video, and the clips of its audio where these are used."""

    video: DecodedVideo
    audio: AudioClips | None


class Video(Modality[FramesAndAudio]):
    """Videos; an encoder's config has `tubelet`, `video_rows: PatchRows`, maybe `video_pruning_rate`, `video_lines`."""

    name = "video"
    placeholder = VISION
    suffixes = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg")
    resources = (
        Resource("video_rows", "rows of videos", "processor.video_rows"),
        Resource("kept", "video tokens left by pruning", "processor.video_rows"),
    )

    def __init__(self, config: ProcessorConfig, encoder: object | None):
        self._config = config
        self._patches: PatchRows | None = encoder.video_rows if self.accepts(encoder) else None
        self._encoder = encoder
        self._lines: TimeLines = getattr(encoder, "video_lines", "frames")
        self._pruning_rate: float = getattr(encoder, "video_pruning_rate", 0.0)
        self.prunes = self._pruning_rate > 0
        check_patches(config, "video_rows", self._patches)
        self.tokens = config.video_rows // config.resolution.merge**2
        if self._patches is not None:
            of_frames = self._patches.prefix_rows + config.resolution.video_patches
            self.longest = self._patches.rows_per_image or of_frames
        kept = capacity_for_kept(self.tokens, self._pruning_rate) if self._pruning_rate else self.tokens
        self.capacity = {"video_rows": config.video_rows, "kept": kept}
        self.dropped = self.tokens - kept

    @classmethod
    def accepts(cls, encoder: object | None) -> bool:
        """Return whether a vision encoder takes tubelets."""
        return getattr(encoder, "tubelet", None) is not None

    @classmethod
    def edges(cls, encoder: object) -> tuple[Edge, ...]:
        """Return the edge of the tokens, and with pruning one that says which of them are kept."""
        if not getattr(encoder, "video_pruning_rate", 0):
            return super().edges(encoder)
        return (*super().edges(encoder), Edge("vision.kept", "llm.image_kept", gradient=False))

    @classmethod
    def contains(cls, config: ProcessorConfig) -> tuple[str, ...]:
        """Return "video", and "audio" where `audio_in_video` uses it."""
        return ("video",) if config.audio_in_video == "none" else ("video", "audio")

    @classmethod
    def sized(
        cls, config: ProcessorConfig, amounts: Mapping[str, int], arrays: Sequence[np.ndarray] = ()
    ) -> ProcessorConfig:
        """Return the settings with so many rows; what pruning keeps follows from the rows."""
        return dataclasses.replace(config, video_rows=amounts["video_rows"])

    def read(self, value: object) -> FramesAndAudio:
        """Read a file or data URI, a `hetjax.data.media.Video`, or uint8 [F, H, W, 3] shown at `frames.fps`."""
        config, with_audio = self._config, self._config.audio_in_video != "none"
        if is_source(value):
            video = read_video(value, config.frames, with_audio=with_audio, limits=config.limits)
        elif isinstance(value, DecodedVideo):
            video = value
        else:
            pixels = check_pixels(value, 4, "a video", "a Video, or uint8 [frames, height, width, 3]")
            times = tuple(i / config.frames.fps for i in range(len(pixels)))
            video = DecodedVideo(frames=pixels, times=times)
        has_audio = with_audio and video.audio is not None and len(video.audio)
        return FramesAndAudio(video, split_audio(video.audio, config.clip_samples) if has_audio else None)

    def prepare(self, media: Sequence[FramesAndAudio], budget: Budget) -> list[PromptPart]:
        """Prepare each video by itself: its size does not depend on what else is in the sample."""
        return [self._part(*medium) for medium in media]

    def _part(self, video: DecodedVideo, audio: AudioClips | None) -> PromptPart:
        config, per_tubelet = self._config, self._patches.frames
        grid = config.resolution.video_grid(*video.frames.shape[1:3])
        tokens = config.resolution.tokens(grid)
        pixels = np.stack([sized_pixels(frame, grid, config) for frame in whole_tubelets(video.frames, per_tubelet)])
        tubelets = len(pixels) // per_tubelet
        kept = keep_count(tubelets, tokens, self._pruning_rate)
        clips = list(zip(audio.ends, audio.tokens, strict=True)) if audio else []
        order = dict(order=config.audio_in_video, prefix=config.video_prefix)
        return PromptPart(
            items=video_items(video.times, per_tubelet, tokens, clips=clips, lines=self._lines, **order),
            media=[Medium(self.name, pixels, tubelets * tokens), *(audio.media if audio else ())],
            use={
                "video_rows": tubelets * self._patches.rows(*grid),
                "kept": kept,
                **({"clips": len(audio.clips)} if audio else {}),
            },
            dropped=tubelets * tokens - kept,
        )

    def items(self, array: Float32[np.ndarray, "F H W 3"]) -> Sequence[np.ndarray]:
        """Return the tubelets of a video; all of it where pruning compares them with each other."""
        if self.prunes:
            return (array,)
        per_tubelet = self._patches.frames
        return [array[first : first + per_tubelet] for first in range(0, len(array), per_tubelet)]

    def token_grids(self, array: Float32[np.ndarray, "F H W 3"]) -> Sequence[tuple[int, int]]:
        """Return those of each tubelet."""
        return [token_grid(self._patches, array.shape[1:3])] * (len(array) // self._patches.frames)

    def amounts(self, array: Float32[np.ndarray, "F H W 3"]) -> dict[str, int]:
        """Return the patch rows of some tubelets, and how many of their tokens pruning keeps."""
        grid = self._patches.grid(array.shape[1:3])
        tubelets, tokens = len(array) // self._patches.frames, self._config.resolution.tokens(grid)
        kept = keep_count(tubelets, tokens, self._pruning_rate)
        return {"video_rows": tubelets * self._patches.rows(*grid), "kept": kept}

    def cost(self, array: Float32[np.ndarray, "F H W 3"]) -> float:
        """Return the multiplications of some tubelets, each of which is a sequence of its own."""
        tubelets = len(array) // self._patches.frames
        return tubelets * sequence_cost(self._encoder, self.amounts(array)["video_rows"] // tubelets)

    def shapes(self) -> dict[str, ArraySpec]:
        """Return video_patches [rows, numbers], video_places [rows, 4] and video_segments [rows]."""
        return patch_shapes("video_", self._config.video_rows, self._patches)

    def encoder_inputs(self, arrays: Sequence[Float32[np.ndarray, "F H W 3"]]) -> EncoderInputs:
        """Return the patches of normalized videos of whole tubelets."""
        packed = self._patches.pack_videos(arrays, self._config.video_rows)
        return EncoderInputs(patch_arrays("video_", packed), packed.tokens)


def whole_tubelets(frames: Shaped[np.ndarray, "F H W 3"], per_tubelet: int) -> Shaped[np.ndarray, "G H W 3"]:
    """Return frames with the last one repeated until tubelets are full."""
    missing = math.ceil(len(frames) / per_tubelet) * per_tubelet - len(frames)
    return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing else np.asarray(frames)
