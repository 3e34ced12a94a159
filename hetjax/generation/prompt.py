"""Make the arrays of one prompt from a question and media files, no longer than it needs.

Only the modules that the prompt needs take part: without an image or a video there is no vision encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from hetjax.config.build_loader import make_loader
from hetjax.config.model_config import ModelConfig
from hetjax.data.chat import RowCapacity, Tokenizer, parse_messages
from hetjax.data.chat.collate import HostArrays
from hetjax.data.modalities import MODALITIES
from hetjax.data.rows.row_capacity import just_enough, unlimited
from hetjax.errors import ConfigError
from hetjax.generation.model_folder import ModelFolder
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
    tokenizer: Tokenizer


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
    settings = model.data.processor
    contained = {name for kind in files for name in MODALITIES[kind].contains(settings)}
    used = {name: MODALITIES[name].placeholder.module for name in contained}
    used = {name: module for name, module in used.items() if module in model.components}
    components = {name: each for name, each in model.components.items() if name in {*used.values(), "llm"}}
    chat = parse_messages([{"role": "user", "content": prompt}], where="the prompt", files=files)
    settings = dataclasses.replace(settings, context=settings.context or model.data.seq_len)
    data = dataclasses.replace(model.data, processor=unlimited(settings, used, components), batch_size=1)
    loader = make_loader(data, ModelConfig.of(components))
    sample = loader.processor.sample(chat)
    settings = just_enough(data.processor, sample, components)
    pruned = RowCapacity.of(settings, 0, components).most.before_pruning
    length = max(sample.use.tokens, sample.use.before_pruning - pruned)
    length = -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    fitted = make_loader(dataclasses.replace(data, processor=settings, seq_len=length), ModelConfig.of(components))
    made = fitted.collate_prompts([sample])
    return Question(modules=tuple(components), arrays=made.arrays, lengths=made.lengths, tokenizer=loader.tokenizer)


def _check_media(components: Mapping[str, ComponentConfig], files: Files) -> None:
    takes = {
        name: modality.accepts(components.get(modality.placeholder.module)) for name, modality in MODALITIES.items()
    }
    for kind in files:
        if not takes.get(kind):
            known = ", ".join(["text", *(each for each, taken in takes.items() if taken)])
            raise ConfigError(f"--{kind} {files[kind][0]}: the model takes {known}, but no {kind}; leave it out")
