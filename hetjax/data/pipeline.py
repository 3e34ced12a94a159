"""Stream training batches.

B batch · S fused sequence · I images a sample · N = I * tokens_per_image encoder tokens · H, W pixels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import grain
import numpy as np

from hetjax.data.bad_samples import BadTally, FilledRow, StandIns
from hetjax.data.chat import OmniSample, Processor
from hetjax.data.chat.collate import HostArrays
from hetjax.data.config import DataConfig
from hetjax.data.loading import LoadedSample, Loader
from hetjax.data.omni import OmniLoader
from hetjax.data.order import SampleOrder
from hetjax.data.prefetch import read_ahead
from hetjax.data.sources import TrainSources, open_train
from hetjax.data.tokenizer import Tokenizer
from hetjax.errors import DataError
from hetjax.stages.row_subset import RowSubset, check_rows

TrainSample = LoadedSample | OmniSample
_STREAM_KEYS = ("shuffle", "seed")


class StreamState(TypedDict, total=False):
    """The position in a stream of samples, fit for JSON.

    `shuffle`, `seed`, `sources` and `legs` fix its order (see `SampleOrder`); `seen` and `bad` count samples; `pool`
    holds the positions of samples that are read and in no batch yet, where rows are packed.
    """

    shuffle: bool
    seed: int
    sources: dict[str, list[int]]
    legs: list[list[Any]]
    seen: int
    bad: int
    pool: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostBatch:
    """One global batch in host memory, or those of its rows that this process needs.

    `arrays` holds, by module (see `hetjax.data.chat.make_arrays` for those of a processor):
    - "vision": images float32 [B, I, H, W, 3] in [-1, 1], zeros where a sample has fewer than I;
    - "llm": tokens int32 [B, S], labels int32 [B, S], loss_weights float32 [B, S] and
      image_positions int32 [B, N]: the position of each encoder token in the sequence, S where there is no image.
    For a model without a vision encoder there is no "vision" and no image_positions.
    Each is a numpy array, or a `RowSubset` of that shape where `TrainData` loads certain rows only.

    `epoch` is the pass over the data, from 0, in which the batch begins; a batch may end in the next one.
    "routes" are there where media are balanced (`hetjax.stages.routes`).

    `bad` names the samples whose turn it was in these rows but that cannot be used, each as "file:line: reason".
    `metrics` are numbers to log with the step: how even balanced media are.
    """

    arrays: Mapping[str, Mapping[str, np.ndarray | RowSubset]]
    epoch: int
    bad: tuple[str, ...]
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class TrainData(Iterator[HostBatch]):
    """Batches for ever or for `config.epochs` passes, in an order that `config.seed` fixes.

    Each epoch has every sample once, in a new order if `config.shuffle`, or as often as the weights or repeats of their
    sources say; batches run on across the border between epochs, and a last partial batch is dropped. Row r of batch b
    holds the sample at position b * batch_size + r of that order. If it is bad, the next good one behind it in the
    dataset stands in for it (after the last, the first), whatever other rows hold; a bad sample shifts nothing.

    So a row does not depend on the others, and a process may load only the `rows` (numbers within a batch,
    ascending) that it needs: they equal those rows of the whole batch. No other sample is read. None loads
    all. Threads read ahead of the step.

    With a `processor` it makes the samples, one a row, in the place of `tokenizer` and `tokens_per_image`.

    `get_state` after any batch, given to `set_state` of a new object, continues with the same batches,
    whichever rows either loads. Sources may have other weights there, and new sources may be added: each goes on
    where it was.

    Raises:
        DataError: the dataset is missing or empty, or has fewer samples over all its epochs than one
            batch; or too many of those that this process loads are bad (see `BadTally`).
        BatchError: `rows` do not ascend, or are not rows of a batch.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer | None,
        tokens_per_image: int,
        rows: Sequence[int] | None = None,
        processor: Processor | None = None,
    ):
        sources = open_train(config)
        source = sources.joined
        self._config = config
        self._is_whole = rows is None
        self._rows = tuple(range(config.batch_size) if rows is None else rows)
        check_rows(self._rows, config.batch_size)
        self._order = sample_order(config, sources)
        self._stream = {"shuffle": config.shuffle, "seed": config.seed}
        self._seen = 0  # samples of the whole stream, in batches given out
        self._tally = BadTally(path=source.path, samples=len(source), max_share=config.max_bad_share)
        if processor is not None:
            self._loader = OmniLoader(source=source, processor=processor, ignore_keys=config.ignore_keys)
        else:
            self._loader = Loader(source=source, config=config, tokenizer=tokenizer, tokens_per_image=tokens_per_image)
        self._stand_ins = StandIns(self._loader, most=self._tally.most_on_end, ends=sources.ends)
        self._reader = self._read()

    def __next__(self) -> HostBatch:
        if self._order.total - self._seen < self._config.batch_size:
            raise StopIteration
        tally = dataclasses.replace(self._tally)  # kept only with the whole batch, so that a state is never within one
        filled: list[FilledRow[TrainSample]] = []
        try:
            while len(filled) < len(self._rows):
                filled.append(next(self._reader))
                count_row(filled[-1], tally)
        except DataError:
            self._go_to(self._seen)  # asked again, the stream tries the same batch again
            raise
        epoch = self._seen // self._order.epoch
        self._seen, self._tally = self._seen + self._config.batch_size, tally
        arrays = self._loader.stack([row.sample for row in filled])
        if not self._is_whole:
            arrays = as_subsets(arrays, self._rows, self._config.batch_size)
        metrics = arrays.pop("metrics", {})
        bad = tuple(row.skipped for row in filled if row.skipped)
        return HostBatch(arrays=arrays, epoch=epoch, bad=bad, metrics=metrics)

    def get_state(self) -> StreamState:
        """Return the position of the stream after the last batch, fit for JSON.

        `seen` counts the samples of all rows. So does `bad`, in proportion where this process loads only some rows.
        """
        loaded, size = len(self._rows), self._config.batch_size
        bad = (self._tally.bad * size + loaded // 2) // loaded if loaded else 0
        return {**self._stream, **self._order.state(self._seen), "seen": self._seen, "bad": bad}

    def set_state(self, state: StreamState) -> None:
        """Go on after the batch at which `get_state` gave `state`, of these or of other rows.

        Raises:
            DataError: the state is of a dataset of another size, or another order of samples, or lies
                beyond the last epoch.
        """
        state = self._order.upgraded(state)
        check_stream(state, self._stream, self._tally.path)
        if state["seen"] > self._order.total:
            raise DataError(
                f"dataset '{self._tally.path}': the saved state is after {state['seen']} samples, "
                f"but epochs={self._config.epochs} end after {self._order.total}; raise epochs"
            )
        self._order.resume(state, state["seen"])
        loaded, size = len(self._rows), self._config.batch_size
        self._tally.seen = state["seen"] * loaded // size
        self._tally.bad = (state["bad"] * loaded + size // 2) // size
        self._tally.in_a_row = 0
        self._go_to(state["seen"])

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()

    def _go_to(self, seen: int) -> None:
        self.close()
        self._seen = seen
        self._reader = self._read()

    def _read(self) -> Generator[FilledRow[TrainSample], None, None]:
        """Return the rows that this process loads, batch by batch, of the stream after the samples seen so far."""
        config, rows, seen, order = self._config, self._rows, self._seen, self._order
        batches = (order.total - seen) // config.batch_size

        def fill(count: int) -> FilledRow[TrainSample]:
            batch, row = divmod(count, len(rows))
            position = seen + batch * config.batch_size + rows[row]
            return self._stand_ins.fill(order[position], turn=position)

        counts = grain.MapDataset.range(batches * len(rows))
        return read_ahead(counts, fill, workers=config.workers, batch_size=len(rows))


def count_row(row: FilledRow[TrainSample], tally: BadTally) -> None:
    """Count a row's sample as good or bad. Raises DataError where it is one bad sample too many."""
    if row.skipped is None:
        tally.good()
        return
    tally.skip(row.skipped)
    if row.sample is None:
        raise tally.no_stand_in(row.skipped)


def check_stream(state: StreamState, stream: StreamState, path: Path, more_keys: Sequence[str] = ()) -> None:
    """Raise DataError unless a saved state is of this very order of samples."""
    missing = {*_STREAM_KEYS, "sources", "legs", "seen", "bad", *more_keys} - set(state)
    if missing:
        raise DataError(f"data state lacks {', '.join(sorted(missing))}; restore one that get_state returned")
    for key in _STREAM_KEYS:
        if state[key] != stream[key]:
            raise DataError(
                f"dataset '{path}': {key} is {state[key]} in the saved state and {stream[key]} "
                "in this run, so the order of samples cannot continue; use the same, or begin a new run"
            )


def as_subsets(arrays: HostArrays, rows: tuple[int, ...], batch_size: int) -> dict[str, dict[str, RowSubset]]:
    """Return arrays of these rows of a batch as subsets of the whole batch's arrays."""
    return {
        module: {name: RowSubset(value, rows, batch_size) for name, value in inputs.items()}
        for module, inputs in arrays.items()
    }


def sample_order(config: DataConfig, sources: TrainSources) -> SampleOrder:
    """Return which sample each position of the stream has. Raises DataError where it is shorter than a batch."""
    order = SampleOrder(sources, shuffle=config.shuffle, seed=config.seed, epochs=config.epochs)
    if order.total < config.batch_size:
        raise DataError(
            f"dataset '{sources.joined.path}': batch_size {config.batch_size} exceeds the {order.total} samples of "
            f"epochs={config.epochs}; lower batch_size, raise epochs or add samples"
        )
    return order
