"""Read held-out prompts with the answers that are expected.

B batch · S fused sequence · I images a sample · N = I * tokens_per_image encoder tokens · H, W pixels
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int32

from hetjax.data.bad_samples import BadSample, BadTally, reason_of
from hetjax.data.chat import Processor
from hetjax.data.chat.collate import HostArrays
from hetjax.data.config import DataConfig
from hetjax.data.loading import LoadedSample, Loader
from hetjax.data.omni import OmniLoader, OmniPrompt
from hetjax.data.prefetch import read_ahead
from hetjax.data.reading import Line, Source
from hetjax.data.sources import open_eval
from hetjax.data.tokenizer import Tokenizer
from hetjax.errors import DataError

EvalSample = LoadedSample | OmniPrompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """Prompts for a model to continue.

    Without a processor `arrays` holds "vision": images float32 [B, I, H, W, 3], and "llm": tokens int32 [B, S]
    padded after the prompt, and image_positions int32 [B, N] (S where there is no image). `lengths` is how many ids of
    each row are prompt. The first `count` rows are real and have their text in `answers`; the rest of a last batch
    repeats the last sample. `groups` has the group of each of these, where answers are counted by groups. `bad` names
    the samples skipped, each as "file:line: reason".
    """

    arrays: HostArrays
    lengths: Int32[np.ndarray, B]
    answers: list[str]
    count: int
    bad: tuple[str, ...]
    groups: tuple[str, ...] = ()


class _Asked(NamedTuple):
    """A prompt and the group that it is counted in; None without groups."""

    prompt: EvalSample
    group: str | None


def eval_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    tokens_per_image: int,
    batch_size: int,
    processor: Processor | None = None,
    source: Source | None = None,
    *,
    by: str | None = None,
    blank: Collection[str] = (),
) -> Iterator[EvalBatch]:
    """Return every held-out sample once, in file order, by `processor` where there is one.

    `source` has the samples where what `config.eval` names is open already. `by` is the key of samples whose value is
    their group. Media of the modalities in `blank` have no content: see `OmniSample.blanked`.

    Bad samples are skipped under the same limit as in training.

    Raises:
        ConfigError: `config.eval` is not set.
        DataError: the file is missing or empty, or has too many bad samples (see `BadTally`).
    """
    source = open_eval(config) if source is None else source
    if processor is not None:
        loader = OmniLoader(source=source, processor=processor, prompts=True, ignore_keys=config.ignore_keys)
    else:
        loader = Loader(
            source=source, config=config, tokenizer=tokenizer, tokens_per_image=tokens_per_image, prompts=True
        )

    def ask(index: int) -> _Asked | BadSample:
        prompt = loader(index)
        if isinstance(prompt, BadSample):
            return prompt
        try:
            group = None if by is None else group_of(source[index], by)
        except DataError as error:
            return BadSample(reason=reason_of(error, source, index))
        return _Asked(_blanked(prompt, blank) if blank else prompt, group)

    order = grain.MapDataset.range(len(source))
    samples = read_ahead(order, ask, workers=config.workers, batch_size=batch_size)
    tally = BadTally(path=source.path, samples=len(source), max_share=config.max_bad_share)
    return _batches(samples, tally, batch_size, loader)


def group_of(line: Line, by: str) -> str:
    """Return the group of a sample, the value of its key `by`. Raises DataError where it has none."""
    value = line.about.get(by)
    if not isinstance(value, str | int):
        raise DataError(
            f"{line.where}: the sample has {'no' if value is None else 'neither a text nor a number under the'} key "
            f"'{by}', by which eval.by counts answers; give it one, or set eval.by to null"
        )
    return str(value)


def _blanked(prompt: EvalSample, kinds: Collection[str]) -> EvalSample:
    if isinstance(prompt, OmniPrompt):
        return dataclasses.replace(prompt, sample=prompt.sample.blanked(kinds))
    return dataclasses.replace(prompt, images=np.zeros_like(prompt.images)) if "image" in kinds else prompt


def _batches(
    samples: Generator[_Asked | BadSample, None, None],
    tally: BadTally,
    batch_size: int,
    loader: Loader | OmniLoader,
) -> Iterator[EvalBatch]:
    good: list[_Asked] = []
    bad: list[str] = []
    with contextlib.closing(samples):
        for sample in samples:
            if isinstance(sample, BadSample):
                bad.append(sample.reason)
                tally.skip(sample.reason)
                continue
            # A full batch waits for the next good sample, so that bad ones at the very end are named too.
            if len(good) == batch_size:
                yield _batch(good, bad, batch_size, loader)
                good, bad = [], []
            tally.good()
            good.append(sample)
        if good:
            yield _batch(good, bad, batch_size, loader)


def _batch(asked: Sequence[_Asked], bad: Sequence[str], batch_size: int, loader: Loader | OmniLoader) -> EvalBatch:
    samples = [each.prompt for each in asked]
    prompts = loader.stack_prompts([*samples, *[samples[-1]] * (batch_size - len(samples))])
    return EvalBatch(
        arrays=prompts.arrays,
        lengths=prompts.lengths,
        answers=prompts.answers[: len(samples)],
        count=len(samples),
        bad=tuple(bad),
        groups=tuple(each.group for each in asked if each.group is not None),
    )
