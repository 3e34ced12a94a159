"""The settings of a dataset."""

from __future__ import annotations

import dataclasses
from typing import Any

from hetjax.data.held_out_sets import held_out_sets
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.source_config import train_sources
from hetjax.errors import ConfigError
from hetjax.models.class_path import OwnPart


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The source of samples and how they become batches.

    Args:
        train: Training samples: a file, a folder or a glob; a source as {path, name, weight, repeat, split, columns};
            or a list of these. Paths of media are relative to the folder of the file that names them.
        eval: Held-out samples, as `train`; {share: 0.01} takes this share of the training samples; null for none.
            Several sets by name: {documents: {sources: d.jsonl, metrics: [anls]}, speech: s.jsonl}.
        tokenizer: Hugging Face `tokenizers` JSON file, or its folder; null for the built-in byte-level tokenizer.
        seq_len: Length in tokens of the fused sequence; a longer sample is bad.
        batch_size: Rows a step, over all devices; a sample each, or several (processor.packed).
        shapes: The most shapes that batches have. Several are chosen from what the samples take, for the least work on
            padding, and each batch has rows of about one size; programs for all are compiled before the first step.
        shuffle: Whether each epoch draws the samples in a random order of its own.
        epochs: Passes over the training samples, or null to repeat forever.
        seed: Seed of the order of samples.
        ignore_keys: Keys of samples and of their messages that are left out; any other that nothing reads is an error.
        allow_outside: Whether samples may name files outside of their dataset's folder: the one that is given, or
            that its file is in. Leave it off for data of others: they could name any file that you can read.
        max_bad_share: Largest share of bad samples that is skipped before training stops, from 0 to 1.
        processor: How text, images, videos and audio are taken in.
        own_processor: A class of your own, {class_path: my_file.MyProcessor, init_args: {}}, in the place of
            hetjax.data.chat.Processor, from which it inherits; null for that.
        workers: Threads that read and decode samples ahead of the step; 0 reads when the step asks.
    """

    train: list[Any] | dict[str, Any] | str
    eval: list[Any] | dict[str, Any] | str | None = None
    tokenizer: str | None = None
    seq_len: int
    batch_size: int
    shapes: int = 1
    shuffle: bool = True
    epochs: int | None = None
    seed: int = 0
    ignore_keys: tuple[str, ...] = ()
    allow_outside: bool = False
    max_bad_share: float = 0.01
    processor: ProcessorConfig = dataclasses.field(default_factory=ProcessorConfig)
    own_processor: OwnPart | None = None
    workers: int = 4

    def __post_init__(self):
        train_sources(self.train)
        held_out_sets(self.eval)
        least = {"seq_len": 2, "batch_size": 1, "shapes": 1, "seed": 0, "workers": 0}
        if self.epochs is not None:
            least["epochs"] = 1
        for name, least_value in least.items():
            if getattr(self, name) < least_value:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; give {least_value} or more")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"data.max_bad_share is {self.max_bad_share}; give a share from 0 to 1")
