"""Random inputs of a component, of a given size, to measure it alone."""

from __future__ import annotations

import math

import numpy as np

from hetjax.models import (
    ClipConfig,
    DecoderConfig,
    NemotronHConfig,
    ParakeetConfig,
    Qwen3VisionConfig,
    RadioConfig,
    Siglip2Config,
    VisionConfig,
)
from hetjax.models.components import ComponentConfig
from hetjax.models.parts.audio_clips import SAMPLE_RATE, tokens_of_clip

Inputs = tuple[dict[str, np.ndarray], int]


def inputs_of(config: ComponentConfig, *, batch: int, tokens: int, clip_seconds: float) -> Inputs:
    """Return (arrays by port, tokens that the component takes or makes of them).

    A language model gets `batch` sequences of `tokens` ids; an encoder of images as many images as make about `tokens`
    tokens a sample; one of audio a clip of `clip_seconds` a sample.
    """
    random = np.random.default_rng(0)
    if isinstance(config, DecoderConfig | NemotronHConfig):
        ids = random.integers(0, config.vocab_size, (batch, tokens + 1), dtype=np.int32)
        weights = np.ones((batch, tokens), np.float32)
        return {"tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_weights": weights}, batch * tokens
    if isinstance(config, VisionConfig | ClipConfig):
        images = max(1, tokens // config.tokens_per_image)
        shape = (batch, images, config.image_size, config.image_size, config.channels)
        return {"images": random.random(shape, np.float32)}, batch * images * config.tokens_per_image
    if isinstance(config, Siglip2Config) and config.image_size is not None:
        of_image = (config.image_size // config.patch_size) ** 2
        shape = (batch, max(1, tokens // of_image), config.image_size, config.image_size, config.channels)
        return {"images": random.random(shape, np.float32)}, batch * shape[1] * of_image
    if isinstance(config, RadioConfig | Siglip2Config | Qwen3VisionConfig):
        return _packed_image(config, batch, tokens, random)
    if isinstance(config, ParakeetConfig):
        samples = int(clip_seconds * SAMPLE_RATE)
        waveforms = random.normal(size=(batch, 1, samples)).astype(np.float32)
        return {"waveforms": waveforms, "lengths": np.full((batch, 1), samples, np.int32)}, batch * int(
            tokens_of_clip(samples)
        )
    raise TypeError(f"no inputs are known for a {type(config).__name__}")


def _packed_image(
    config: RadioConfig | Siglip2Config | Qwen3VisionConfig, batch: int, tokens: int, random: np.random.Generator
) -> Inputs:
    packing = config.image_rows
    side = packing.merge * packing.patch_size * max(1, math.isqrt(tokens))
    image = random.normal(size=(side, side, config.channels)).astype(np.float32)
    grid = side // config.patch_size
    rows = packing.pack_images([image], packing.rows(grid, grid))
    arrays = {"patches": rows.patches, "places": rows.places, "segments": rows.segments}
    made = batch * len(rows.tokens[0])
    return {name: np.broadcast_to(array, (batch, *array.shape)) for name, array in arrays.items()}, made
