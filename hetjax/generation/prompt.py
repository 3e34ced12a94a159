"""Make the arrays of one prompt from a question and media files, no longer than it needs.

Only the modules that the prompt needs take part: without an image or a video there is no vision encoder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hetjax.config.build_processor import make_processor, tokenizer_of
from hetjax.config.model_config import ModelConfig
from hetjax.data import DataConfig, Tokenizer, load_image, parse_conversation, render_prompt
from hetjax.data.chat import (
    OmniSample,
    OmniTokenizer,
    Processor,
    ProcessorConfig,
    Room,
    make_arrays,
    parse_messages,
    prompt_lengths,
)
from hetjax.data.loading import Arrays
from hetjax.data.media import SAMPLE_RATE
from hetjax.errors import ConfigError
from hetjax.generation.model_folder import ModelFolder
from hetjax.models import VisionConfig
from hetjax.models.component_config import ComponentConfig

MOST = 1 << 24
"""Rows and clips while it is still open how many a prompt needs; no array has so many."""
STEP = 64
"""The sequence has a multiple of so many rows, which every usual degree divides."""

Files = Mapping[str, Sequence[str]]
"""Paths by kind: image, video, audio."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt.

    Attributes:
        modules: Names of the modules that take part.
        arrays: Inputs by module and port, of one row.
        lengths: Number of ids of the prompt, int32 of shape [1].
        tokenizer: What encoded the prompt, and decodes the answer.
    """

    modules: tuple[str, ...]
    arrays: Arrays
    lengths: np.ndarray
    tokenizer: Tokenizer | OmniTokenizer


def ask(model: ModelFolder, prompt: str, files: Files) -> Question:
    """Make a prompt of a text and files, which stand before it or where marks such as "<image>" are.

    Args:
        model: The model that is asked.
        prompt: The text.
        files: Paths by kind.

    Raises ConfigError for media that the model does not take, DataError for what cannot be read.
    """
    files = {kind: list(paths) for kind, paths in files.items() if paths}
    _check_media(model.components, files)
    return (_fixed if model.data.processor is None else _fused)(model, prompt, files)


def _check_media(components: Mapping[str, ComponentConfig], files: Files) -> None:
    vision = components.get("vision")
    takes = {
        "image": vision is not None,
        "video": getattr(vision, "tubelet", None) is not None,
        "audio": "audio" in components,
    }
    for kind in files:
        if not takes[kind]:
            known = ", ".join(["text", *(each for each, taken in takes.items() if taken)])
            raise ConfigError(f"--{kind} {files[kind][0]}: the model takes {known}, but no {kind}; leave it out")


def _fused(model: ModelFolder, prompt: str, files: Files) -> Question:
    """With a processor, of images of any size, videos and sound."""
    sees, hears = "image" in files or "video" in files, "audio" in files
    hears = hears or ("video" in files and "audio" in model.components and _sound(model.data.processor))
    used = {"vision": sees, "audio": hears, "llm": True}
    components = {name: each for name, each in model.components.items() if used[name]}
    chat = parse_messages([{"role": "user", "content": prompt}], where="the prompt", files=files)
    open_room = _with_rows(model.data, images=MOST if sees else 0, videos=_videos(components, files), hears=hears)
    processor = make_processor(open_room, ModelConfig(**components))
    sample = processor.sample(chat)
    fitted = make_processor(_fitted(processor, sample, model.data), ModelConfig(**components))
    tokenizer = tokenizer_of(open_room, ModelConfig(**components), processor)
    return Question(
        modules=tuple(components),
        arrays=make_arrays(fitted, [[sample]], training=False),
        lengths=prompt_lengths([sample]),
        tokenizer=tokenizer,
    )


def _sound(settings: ProcessorConfig) -> bool:
    return settings.audio_in_video != "none"


def _videos(components: Mapping[str, ComponentConfig], files: Files) -> int:
    return MOST if "video" in files and "vision" in components else 0


def _with_rows(data: DataConfig, *, images: int, videos: int, hears: bool) -> DataConfig:
    settings = data.processor
    heard = _sound(settings) and hears
    processor = dataclasses.replace(
        settings,
        image_rows=images,
        video_rows=videos,
        clips=MOST if hears else 0,
        audio_in_video=settings.audio_in_video if heard else "none",
        context=settings.context or data.seq_len,
        packed=1,
    )
    return dataclasses.replace(data, processor=processor, batch_size=1)


def _fitted(processor: Processor, sample: OmniSample, data: DataConfig) -> DataConfig:
    """The settings whose room is what a sample needs, the sequence rounded up."""
    need, settings = sample.need, processor.config
    longest = max((len(clip) for clip in sample.clips), default=0)
    # Half a sample more, so that seconds come back as so many samples.
    seconds = (min(-(-longest // 1600) * 1600, settings.clip_samples) + 0.5) / SAMPLE_RATE
    settings = dataclasses.replace(
        settings,
        image_rows=need.image_rows,
        video_rows=need.video_rows,
        clips=need.clips,
        clip_seconds=seconds if longest else settings.clip_seconds,
    )
    layouts = {"image_rows": processor.image_rows, "video_rows": processor.video_rows}
    pruned = Room.of(settings, 0, pruning_rate=processor.pruning_rate, **layouts).need.given
    rows = max(need.tokens, need.given - pruned)
    return dataclasses.replace(data, processor=settings, seq_len=-(-rows // STEP) * STEP, batch_size=1)


def _fixed(model: ModelFolder, prompt: str, files: Files) -> Question:
    """Without a processor: images of one size, or text alone."""
    images = files.get("image", [])
    components = {name: each for name, each in model.components.items() if name == "llm" or images}
    vision = components.get("vision")
    per_image = vision.tokens_per_image if isinstance(vision, VisionConfig) else 0
    tokenizer = tokenizer_of(model.data, ModelConfig(**components), None)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
    line = json.dumps({"messages": messages, "images": [str(Path(image).absolute()) for image in images]})
    conversation = parse_conversation(line, where="the prompt", folder=Path())
    rendered = render_prompt(conversation, tokenizer, per_image, max(model.data.seq_len, STEP))
    rows = -(-rendered.length // STEP) * STEP
    tokens = np.full(rows, tokenizer.pad, np.int32)
    tokens[: rendered.length] = rendered.tokens[: rendered.length]
    arrays: Arrays = {"llm": {"tokens": tokens[None]}}
    if images:
        arrays["llm"]["image_positions"] = rendered.image_positions[None]
        pixels = np.stack([load_image(path, model.data.image_size) for path in conversation.images])
        arrays["vision"] = {"images": pixels[None]}
    return Question(
        modules=tuple(components),
        arrays=arrays,
        lengths=np.asarray([rendered.length], np.int32),
        tokenizer=tokenizer,
    )
