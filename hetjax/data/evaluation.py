"""Read held-out prompts with the answers that are expected.

B batch · S fused sequence · I images a sample · N = I * tokens_per_image encoder tokens · H, W pixels
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Int32

from hetjax.data.bad_samples import BadSample, BadTally
from hetjax.data.chat import Processor
from hetjax.data.chat.collate import HostArrays
from hetjax.data.config import DataConfig
from hetjax.data.loading import LoadedSample, Loader
from hetjax.data.omni import OmniLoader, OmniPrompt
from hetjax.data.prefetch import read_ahead
from hetjax.data.reading import Source
from hetjax.data.sources import open_eval
from hetjax.data.tokenizer import Tokenizer

EvalSample = LoadedSample | OmniPrompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBatch:
    """Prompts for a model to continue.

    Without a processor `arrays` holds "vision": images float32 [B, I, H, W, 3], and "llm": tokens int32 [B, S]
    padded after the prompt, and image_positions int32 [B, N] (S where there is no image). `lengths` is how many ids of
    each row are prompt. The first `count` rows are real and have their text in `answers`; the rest of a last batch
    repeats the last sample. `bad` names the samples skipped, each as "file:line: reason".
    """

    arrays: HostArrays
    lengths: Int32[np.ndarray, B]
    answers: list[str]
    count: int
    bad: tuple[str, ...]


def eval_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    tokens_per_image: int,
    batch_size: int,
    processor: Processor | None = None,
    source: Source | None = None,
) -> Iterator[EvalBatch]:
    """Return every held-out sample once, in file order, by `processor` where there is one.

    `source` has the samples where what `config.eval` names is open already.

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
    order = grain.MapDataset.range(len(source))
    samples = read_ahead(order, loader, workers=config.workers, batch_size=batch_size)
    tally = BadTally(path=source.path, samples=len(source), max_share=config.max_bad_share)
    return _batches(samples, tally, batch_size, loader)


def _batches(
    samples: Generator[EvalSample | BadSample, None, None],
    tally: BadTally,
    batch_size: int,
    loader: Loader | OmniLoader,
) -> Iterator[EvalBatch]:
    good: list[EvalSample] = []
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


def _batch(
    samples: Sequence[EvalSample], bad: Sequence[str], batch_size: int, loader: Loader | OmniLoader
) -> EvalBatch:
    prompts = loader.stack_prompts([*samples, *[samples[-1]] * (batch_size - len(samples))])
    return EvalBatch(
        arrays=prompts.arrays,
        lengths=prompts.lengths,
        answers=prompts.answers[: len(samples)],
        count=len(samples),
        bad=tuple(bad),
    )
