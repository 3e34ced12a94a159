"""The one way from the lines of a source to the arrays that the modules of a model take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from hetjax.data.chat import (
    Chat,
    Processor,
    Sample,
    Tokenizer,
    make_arrays,
    packed_rows,
    parse_line,
    prompt_lengths,
    row_shapes,
)
from hetjax.data.chat.collate import HostArrays
from hetjax.data.config import DataConfig
from hetjax.data.modalities.modality import ArraySpec
from hetjax.data.reading import Source
from hetjax.data.sources import TrainSources, open_eval, open_train

# B rows of the batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation up to its last answer, and that answer."""

    sample: Sample
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Arrays of a batch of prompts, how many ids of each row are prompt, and the answers that are expected."""

    arrays: HostArrays
    lengths: Int32[np.ndarray, " B"]
    answers: list[str]


class SampleLoader:
    """Loads samples of sources, and collates them to batches; made once for a run.

    Args:
        config: which data, and how they become batches.
        processor: makes samples of conversations, fitted to the model; `hetjax.config.build_loader` makes one.
    """

    def __init__(self, config: DataConfig, processor: Processor):
        self.config, self.processor = config, processor

    @property
    def tokenizer(self) -> Tokenizer:
        """Return what encodes text, and decodes answers."""
        return self.processor.tokenizer

    @functools.cached_property
    def trained(self) -> TrainSources:
        """Return the samples to train on, opened once. Raises DataError."""
        return open_train(self.config)

    @functools.cached_property
    def held_out(self) -> Source:
        """Return the held-out samples, opened once. Raises DataError; or ConfigError where there are none."""
        return open_eval(self.config, lambda: self.trained)

    def parse(self, source: Source, index: int) -> Chat:
        """Return the conversation at an index, without opening its files. Raises DataError."""
        line = source[index]
        return parse_line(
            line.text, where=line.where, folder=line.folder or source.folder, ignore=self.config.ignore_keys
        )

    def load(self, source: Source, index: int, *, turn: int | None = None) -> Sample:
        """Return the sample at an index; with `turn`, its media are moved at random, fixed by that and the seed.

        Raises:
            DataError: it cannot be used; the message opens with "file:line: ".
        """
        sample = self.processor.sample(self.parse(source, index), training=True)
        if turn is None or not self.processor.config.max_shift:
            return sample
        random = np.random.default_rng((self.config.seed, turn))
        modalities = self.processor.capacity.modalities
        moved = {
            name: tuple(each._replace(array=modalities[name].moved(each.array, random)) for each in media)
            for name, media in sample.media.items()
        }
        return dataclasses.replace(sample, media=moved)

    def load_prompt(self, source: Source, index: int) -> Prompt:
        """Return the sample at an index as a prompt with its answer. Raises as `load`."""
        asked, answer = self.parse(source, index).asked()
        return Prompt(sample=self.processor.sample(asked), answer=answer)

    def share_rows(self, samples: Sequence[Sample], *, at_least: int) -> list[list[int]]:
        """Return which samples share a row, in `at_least` so many rows (see `hetjax.data.chat.packed_rows`)."""
        return packed_rows(self.processor, samples, at_least=at_least)

    def collate(self, rows: Sequence[Sequence[Sample]]) -> HostArrays:
        """Return the arrays of a batch (see `hetjax.data.chat.make_arrays`), of rows that samples share."""
        return make_arrays(self.processor, rows, training=True)

    def collate_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Return the arrays of a batch of prompts, one a row."""
        samples = [prompt.sample for prompt in prompts]
        return PromptBatch(
            arrays=make_arrays(self.processor, [[sample] for sample in samples], training=False),
            lengths=prompt_lengths(samples),
            answers=[prompt.answer for prompt in prompts],
        )

    def shapes(self, *, training: bool) -> dict[str, dict[str, ArraySpec]]:
        """Return shape and dtype of one row of every array of a batch, by module and port."""
        return row_shapes(self.processor.capacity, training=training)
