"""The stream of training batches.

B batch · S fused sequence · I images a sample · N = I * tokens_per_image encoder tokens · H, W pixels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from hetjax.data.config import DataConfig
from hetjax.data.loading import BadSample, LoadedSample, Loader
from hetjax.data.reading import read_ahead
from hetjax.data.source import JsonlSource
from hetjax.data.tally import BadTally
from hetjax.data.tokenizer import Tokenizer
from hetjax.errors import DataError

Arrays = dict[str, dict[str, np.ndarray]]
_STREAM_KEYS = ("samples", "shuffle", "seed")
_FOREVER = 2**31  # passes over the data; grain's endless repeat has no length, so it cannot be cut into chunks


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostBatch:
    """One global batch in host memory.

    `arrays` holds, by module:
    - "vision": images float32 [B, I, H, W, 3] in [-1, 1], zeros where a sample has fewer than I;
    - "llm": tokens int32 [B, S], labels int32 [B, S], loss_weights float32 [B, S] and
      image_positions int32 [B, N]: the row of each encoder token, S where there is no image.
    For a model without a vision encoder there is no "vision" and no image_positions.

    `epoch` is the pass over the data, from 0, in which the batch begins; a batch may end in the next one.
    `bad` names the samples skipped while the batch was filled, each as "file:line: reason".
    """

    arrays: Arrays
    epoch: int
    bad: tuple[str, ...]


class TrainData(Iterator[HostBatch]):
    """Batches for ever or for `config.epochs` passes, in an order that `config.seed` fixes.

    Each epoch reads every sample once, in a new order if `config.shuffle`; batches run on across the
    border between epochs. A bad sample is skipped, and the next good one takes its place. A last partial
    batch is dropped. Threads read ahead of the step.

    `get_state` after any batch, given to `set_state` of a new object, continues with the same batches.

    Raises:
        DataError: the dataset is missing or empty, or has too many bad samples (see `BadTally`), or
            has fewer good samples over all its epochs than one batch.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, tokens_per_image: int):
        source = JsonlSource(config.train)
        self._config = config
        self._total = len(source) * (_FOREVER if config.epochs is None else config.epochs)
        if self._total < config.batch_size:
            raise self._too_few(self._total)
        self._stream = {"samples": len(source), "shuffle": config.shuffle, "seed": config.seed}
        self._tally = BadTally(path=source.path, samples=len(source), max_share=config.max_bad_share)
        self._loader = Loader(source=source, config=config, tokenizer=tokenizer, tokens_per_image=tokens_per_image)
        self._samples = self._read_from(0)

    def __next__(self) -> HostBatch:
        tally = dataclasses.replace(self._tally)  # kept only with the whole batch, so that a state is never within one
        good: list[LoadedSample] = []
        bad: list[str] = []
        while len(good) < self._config.batch_size:
            sample = next(self._samples, None)
            if sample is None:
                if self._tally.seen == 0:
                    raise self._too_few(len(good))
                raise StopIteration
            if isinstance(sample, BadSample):
                bad.append(sample.reason)
                tally.skip(sample.reason)
            else:
                good.append(sample)
                tally.good()
        epoch, self._tally = self._tally.seen // tally.samples, tally
        return HostBatch(
            arrays=_stack(good, with_images=self._loader.tokens_per_image > 0), epoch=epoch, bad=tuple(bad)
        )

    def get_state(self) -> dict[str, Any]:
        """Where the stream stands after the last batch: plain numbers, fit for JSON."""
        return {**self._stream, "seen": self._tally.seen, "bad": self._tally.bad}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch at which `get_state` gave `state`.

        Raises:
            DataError: the state is of a dataset of another size, or another order of samples, or lies
                beyond the last epoch.
        """
        missing = {*_STREAM_KEYS, "seen", "bad"} - set(state)
        if missing:
            raise DataError(f"data state lacks {', '.join(sorted(missing))}; restore one that get_state returned")
        for key in _STREAM_KEYS:
            if state[key] != self._stream[key]:
                raise DataError(
                    f"dataset '{self._tally.path}': {key} is {state[key]} in the saved state and {self._stream[key]} "
                    "in this run, so the order of samples cannot continue; use the same, or begin a new run"
                )
        if state["seen"] > self._total:
            raise DataError(
                f"dataset '{self._tally.path}': the saved state is after {state['seen']} samples, "
                f"but epochs={self._config.epochs} end after {self._total}; raise epochs"
            )
        self.close()
        self._tally.seen, self._tally.bad, self._tally.in_a_row = state["seen"], state["bad"], 0
        self._samples = self._read_from(state["seen"])

    def close(self) -> None:
        """Stop reading ahead."""
        self._samples.close()

    def _read_from(self, seen: int) -> Generator[LoadedSample | BadSample, None, None]:
        """The stream of samples after the first `seen`."""
        config = self._config
        order = grain.MapDataset.range(self._tally.samples)
        if config.shuffle:
            order = order.shuffle(seed=_spread(config.seed))
        order = order.repeat(_FOREVER if config.epochs is None else config.epochs)[seen:]
        turns = order.map_with_index(lambda position, index: (seen + position, index))
        return read_ahead(turns, self._load, workers=config.workers, batch_size=config.batch_size)

    def _load(self, place: tuple[int, int]) -> LoadedSample | BadSample:
        turn, index = place
        return self._loader.shifted(index, turn=turn)

    def _too_few(self, good: int) -> DataError:
        config = self._config
        return DataError(
            f"dataset '{config.train}': batch_size {config.batch_size} exceeds the {good} usable samples of "
            f"epochs={config.epochs}; lower batch_size, raise epochs or add samples"
        )


def _stack(samples: Sequence[LoadedSample], *, with_images: bool) -> Arrays:
    rendered = [sample.rendered for sample in samples]
    llm = {
        "tokens": np.stack([sample.tokens for sample in rendered]),
        "labels": np.stack([sample.labels for sample in rendered]),
        "loss_weights": np.stack([sample.loss_weights for sample in rendered]),
    }
    if not with_images:
        return {"llm": llm}
    llm["image_positions"] = np.stack([sample.image_positions for sample in samples])
    return {"vision": {"images": np.stack([sample.images for sample in samples])}, "llm": llm}


def _spread(seed: int) -> int:
    """Grain adds the epoch to the seed, so that neighbouring seeds would repeat each other's orders."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
