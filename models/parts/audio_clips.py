"""Split audio into clips of 30 seconds at most, as the encoder takes it, and count the frames and tokens of each.

Pure and for the host, so that a data pipeline can count tokens before any audio is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from hetjax.models.errors import ModelError

# C clips · T samples of the longest clip

SAMPLE_RATE = 16_000
"""Samples a second."""
HOP = 160
"""Samples from one frame to the next."""
CLIP_SAMPLES = 30 * SAMPLE_RATE
"""The longest clip."""
HALVINGS = 3
"""Convolutions of stride 2 ahead of the layers."""


def frames_of_clip(samples):
    """Return the frames of a clip of so many samples; of a number, or an array of numbers on host or device."""
    return samples // HOP


def halved(frames):
    """Return the frames after a convolution with 3 taps, stride 2 and padding 1; 0 stays 0."""
    return (frames - 1) // 2 + 1


def tokens_of_clip(samples):
    """Return the tokens of a clip of so many samples, about 12.5 a second; of a number, or an array of numbers."""
    count = frames_of_clip(samples)
    for _ in range(HALVINGS):
        count = halved(count)
    return count


def clip_lengths(samples: int, longest: int = CLIP_SAMPLES) -> tuple[int, ...]:
    """Return the samples of each clip of an audio: `longest`, and the rest as the last one."""
    whole, rest = divmod(samples, longest)
    return (longest,) * whole + ((rest,) if rest else ())


def split_clips(audio: Float[np.ndarray, " samples"], longest: int = CLIP_SAMPLES) -> list[Float[np.ndarray, " clip"]]:
    """Return the clips of an audio, one after the other, as views of it. Raises ModelError for several channels."""
    if audio.ndim != 1:
        raise ModelError(f"split_clips: the audio has shape {audio.shape}; give one channel, [samples]")
    borders = np.cumsum(clip_lengths(len(audio), longest))
    return np.split(audio, borders[:-1]) if len(borders) else []


def stack_clips(
    clips: Sequence[Float[np.ndarray, " clip"]], count: int | None = None, samples: int | None = None
) -> tuple[Float[np.ndarray, "C T"], Int[np.ndarray, " C"]]:
    """Return clips as (waveforms float32, lengths int32), padded with silence to `count` clips of `samples`.

    Without the two, as many clips and samples as there are. Raises ModelError for more of them.
    """
    lengths = [len(clip) for clip in clips]
    count = len(clips) if count is None else count
    samples = max(lengths, default=0) if samples is None else samples
    if len(clips) > count or max(lengths, default=0) > samples:
        raise ModelError(
            f"stack_clips: {len(clips)} clips of up to {max(lengths, default=0)} samples do not fit into {count} clips "
            f"of {samples}; give more of them, or split the audio"
        )
    waveforms = np.zeros((count, samples), np.float32)
    for waveform, clip in zip(waveforms, clips, strict=False):
        waveform[: len(clip)] = clip
    return waveforms, np.array(lengths + [0] * (count - len(clips)), np.int32)


def clip_token_positions(
    lengths: Int[np.ndarray, " C"], samples: int
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " tokens"]]:
    """Return (positions in the encoder's output that are tokens, the clip of each), for clips padded to `samples`.

    Clip c has the positions c*N to c*N + tokens_of_clip(lengths[c]) - 1 of the output, with N =
    tokens_of_clip(samples); what is left of its N positions is padding.
    """
    padded, counts = tokens_of_clip(samples), tokens_of_clip(np.asarray(lengths))
    clips = np.repeat(np.arange(len(counts)), counts)
    own = np.concatenate([np.arange(count) for count in counts]) if len(counts) else np.zeros(0, int)
    return (clips * padded + own).astype(np.int32), clips.astype(np.int32)
