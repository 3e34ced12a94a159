"""The one way from the lines of a source to the arrays that the modules of a model take."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Int32

from hetjax.data.chat import (
    Chat,
    Processor,
    RowCapacity,
    Sample,
    Tokenizer,
    make_arrays,
    parse_line,
    prompt_lengths,
    row_shapes,
)
from hetjax.data.chat.collate import HostArrays
from hetjax.data.config import DataConfig
from hetjax.data.modalities.modality import ArraySpec
from hetjax.data.reading import JoinedSource, Line, Source
from hetjax.data.rows.balanced_rows import EncoderRows
from hetjax.data.sources import OpenedSet, TrainSources, open_eval, open_train
from hetjax.errors import DataError

# B rows of the batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation up to its last answer, the texts of which any is right, and the group it is counted in.

    The last answer is the first of these texts; others come from the sample's key "answers". `group` is None without
    groups, `where` is "file:line".
    """

    sample: Sample
    expected: tuple[str, ...]
    where: str
    group: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """Arrays of a batch of prompts, and how many ids of each row are prompt."""

    arrays: HostArrays
    lengths: Int32[np.ndarray, " B"]


class SampleLoader:
    """Loads samples of sources, and collates them to batches; made once for a run.

    Args:
        config: which data, and how they become batches.
        processor: makes samples of conversations, fitted to the model; `hetjax.config.build_loader` makes one.
    """

    def __init__(self, config: DataConfig, processor: Processor):
        self.config, self.processor = config, processor

    def balancing(self, encoder_rows: EncoderRows) -> Self:
        """Return one whose batches for training spread media over these rows of the encoders.

        Raises ConfigError for a modality that does not say what its media take and cost.
        """
        other = copy.copy(self)
        other.processor = self.processor.balancing(encoder_rows)
        return other

    @property
    def tokenizer(self) -> Tokenizer:
        """Return what encodes text, and decodes answers."""
        return self.processor.tokenizer

    @functools.cached_property
    def trained(self) -> TrainSources:
        """Return the samples to train on, opened once. Raises DataError."""
        return open_train(self.config)

    @functools.cached_property
    def held_out_sets(self) -> tuple[OpenedSet, ...]:
        """Return the held-out sets, opened once. Raises DataError; or ConfigError where there is none."""
        return open_eval(self.config, lambda: self.trained)

    @functools.cached_property
    def held_out(self) -> Source:
        """Return the samples of all held-out sets, one behind the other. Raises as `held_out_sets`."""
        sources = [each.source for each in self.held_out_sets]
        path = Path(", ".join(str(source.path) for source in sources))
        return sources[0] if len(sources) == 1 else JoinedSource(sources, path=path)

    def parse(self, source: Source, index: int) -> Chat:
        """Return the conversation at an index, without opening its files. Raises DataError."""
        return self._parsed(source[index], source)

    def _parsed(self, line: Line, source: Source) -> Chat:
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

    def load_prompt(self, source: Source, index: int, *, by: str | None = None, blank: Collection[str] = ()) -> Prompt:
        """Return the sample at an index as a prompt with its answer. Raises as `load`.

        Its group is what it has under the key `by`. Media of the modalities in `blank` have no content.
        """
        line = source[index]
        group = None if by is None else group_of(line, by)
        asked, answer = self._parsed(line, source).asked()
        expected = (answer, *other_answers(line))
        sample = self.processor.sample(asked).blanked(blank)
        return Prompt(sample=sample, expected=expected, where=line.where, group=group)

    def collate(self, rows: Sequence[Sequence[Sample]], capacity: RowCapacity) -> HostArrays:
        """Return the arrays of a batch whose rows have this capacity (see `hetjax.data.chat.make_arrays`)."""
        return make_arrays(self.processor, rows, training=True, capacity=capacity)

    def collate_prompts(self, samples: Sequence[Sample]) -> PromptBatch:
        """Return the arrays of a batch of prompts, one a row."""
        return PromptBatch(
            arrays=make_arrays(self.processor, [[sample] for sample in samples], training=False),
            lengths=prompt_lengths(samples),
        )

    def shapes(self, *, training: bool) -> dict[str, dict[str, ArraySpec]]:
        """Return shape and dtype of one row of every array of a batch, by module and port."""
        return row_shapes(self.processor.capacity, training=training)


def other_answers(line: Line) -> tuple[str, ...]:
    """Return the texts under the key "answers" of a sample, which are right as well. Raises DataError for others."""
    given = line.about.get("answers", ())
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str) for each in listed):
        raise DataError(f"{line.where}: 'answers' is {given!r}; give a list of the texts that are right")
    return tuple(listed)


def group_of(line: Line, by: str) -> str:
    """Return the group of a sample, the value of its key `by`. Raises DataError where it has none."""
    value = line.about.get(by)
    if not isinstance(value, str | int):
        raise DataError(
            f"{line.where}: the sample has {'no' if value is None else 'neither a text nor a number under the'} key "
            f"'{by}', by which eval.by counts answers; give it one, or set eval.by to null"
        )
    return str(value)
