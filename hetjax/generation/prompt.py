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
from hetjax.data import Tokenizer, load_image, parse_conversation, render_prompt
from hetjax.data.chat import (
    OmniTokenizer,
    RowCapacity,
    make_arrays,
    parse_messages,
    prompt_lengths,
)
from hetjax.data.chat.collate import HostArrays
from hetjax.data.chat.row_capacity import just_enough, unlimited
from hetjax.data.modalities import MODALITIES
from hetjax.errors import ConfigError
from hetjax.generation.model_folder import ModelFolder
from hetjax.models import VisionConfig
from hetjax.models.components import ComponentConfig

LENGTH_MULTIPLE = 64
"""The length of the sequence is a multiple of this number, which every usual degree divides."""

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
    arrays: HostArrays
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
    takes = {
        name: modality.accepts(components.get(modality.placeholder.module)) for name, modality in MODALITIES.items()
    }
    for kind in files:
        if not takes.get(kind):
            known = ", ".join(["text", *(each for each, taken in takes.items() if taken)])
            raise ConfigError(f"--{kind} {files[kind][0]}: the model takes {known}, but no {kind}; leave it out")


def _fused(model: ModelFolder, prompt: str, files: Files) -> Question:
    """Make a prompt by the processor, with media of any size."""
    settings = model.data.processor
    contained = {name for kind in files for name in MODALITIES[kind].contains(settings)}
    used = {name: MODALITIES[name].placeholder.module for name in contained}
    used = {name: module for name, module in used.items() if module in model.components}
    components = {name: each for name, each in model.components.items() if name in {*used.values(), "llm"}}
    chat = parse_messages([{"role": "user", "content": prompt}], where="the prompt", files=files)
    settings = unlimited(dataclasses.replace(settings, context=settings.context or model.data.seq_len), used)
    data = dataclasses.replace(model.data, processor=settings, batch_size=1)
    processor = make_processor(data, ModelConfig.of(components))
    sample = processor.sample(chat)
    settings = just_enough(settings, sample)
    pruned = RowCapacity.of(settings, 0, processor.encoders).most.before_pruning
    length = _sequence_length(max(sample.use.tokens, sample.use.before_pruning - pruned))
    fitted_data = dataclasses.replace(data, processor=settings, seq_len=length)
    fitted = make_processor(fitted_data, ModelConfig.of(components))
    return Question(
        modules=tuple(components),
        arrays=make_arrays(fitted, [[sample]], training=False),
        lengths=prompt_lengths([sample]),
        tokenizer=tokenizer_of(data, ModelConfig.of(components), processor),
    )


def _sequence_length(needed: int) -> int:
    return -(-needed // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def _fixed(model: ModelFolder, prompt: str, files: Files) -> Question:
    """Make a prompt without a processor, with images of one size or of text alone."""
    images = files.get("image", [])
    components = {name: each for name, each in model.components.items() if name == "llm" or images}
    vision = components.get("vision")
    per_image = vision.tokens_per_image if isinstance(vision, VisionConfig) else 0
    tokenizer = tokenizer_of(model.data, ModelConfig.of(components), None)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
    inline = [image if image.startswith("data:") else str(Path(image).absolute()) for image in images]
    line = json.dumps({"messages": messages, "images": inline})
    conversation = parse_conversation(line, where="the prompt", folder=Path())
    rendered = render_prompt(conversation, tokenizer, per_image, max(model.data.seq_len, LENGTH_MULTIPLE))
    tokens = np.full(_sequence_length(rendered.length), tokenizer.pad, np.int32)
    tokens[: rendered.length] = rendered.tokens[: rendered.length]
    arrays: HostArrays = {"llm": {"tokens": tokens[None]}}
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
