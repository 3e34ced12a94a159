"""The stream of training batches whose rows hold several samples each."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence

import grain

from hetjax.data.bad_samples import BadTally, FilledRow, StandIns
from hetjax.data.chat import OmniSample, Processor, packed_rows
from hetjax.data.config import DataConfig
from hetjax.data.omni import OmniLoader
from hetjax.data.pipeline import (
    HostBatch,
    StreamState,
    TrainData,
    as_subsets,
    check_stream,
    count_row,
    sample_order,
)
from hetjax.data.prefetch import read_ahead
from hetjax.data.sources import open_train
from hetjax.data.tokenizer import Tokenizer
from hetjax.errors import DataError
from hetjax.stages.row_subset import check_rows


class PackedData(Iterator[HostBatch]):
    """Batches in the order of `TrainData`, with samples packed into rows as they come.

    A pool of batch_size * `processor.packed` samples is shared out to rows by `hetjax.data.chat.packing.pack`. Of its
    rows the batch takes those with the oldest samples; what is left stays in the pool. The last samples of all, too few
    for a batch, are dropped.

    How samples share rows depends on all of them, so every process reads every sample, and keeps its `rows` alone.

    `get_state` after any batch, given to `set_state` of a new object, continues with the same batches.

    Raises:
        DataError: as `TrainData`.
        BatchError: `rows` do not ascend, or are not rows of a batch.
    """

    def __init__(self, config: DataConfig, processor: Processor, rows: Sequence[int] | None = None):
        sources = open_train(config)
        source = sources.joined
        self._config, self._processor = config, processor
        self._is_whole = rows is None
        self._rows = tuple(range(config.batch_size) if rows is None else rows)
        check_rows(self._rows, config.batch_size)
        self._order = sample_order(config, sources)
        self._stream = {"shuffle": config.shuffle, "seed": config.seed}
        self._tally = BadTally(path=source.path, samples=len(source), max_share=config.max_bad_share)
        self._loader = OmniLoader(source=source, processor=processor, ignore_keys=config.ignore_keys)
        self._stand_ins = StandIns(self._loader, most=self._tally.most_on_end, ends=sources.ends)
        self._seen = 0  # samples taken from the stream into the pool
        self._pool: dict[int, OmniSample] = {}  # by position in the stream
        self._reader = self._read()

    def __next__(self) -> HostBatch:
        size = self._config.batch_size
        pool, tally, seen, bad = dict(self._pool), dataclasses.replace(self._tally), self._seen, []
        try:
            while len(pool) < size * self._processor.config.packed and seen < self._order.total:
                row = next(self._reader)
                count_row(row, tally)
                bad += [row.skipped] if row.skipped else []
                pool[seen] = row.sample
                seen += 1
        except DataError:
            self._go_to(self._seen)  # asked again, the stream tries the same samples again
            raise
        positions = sorted(pool)
        packed = packed_rows(self._processor, [pool[position] for position in positions], at_least=size)
        taken = [[positions[i] for i in row] for row in sorted(packed)[:size]]
        if len(taken) < size:
            self._go_to(self._seen)
            raise StopIteration
        self._seen, self._tally = seen, tally
        samples = [[pool.pop(position) for position in row] for row in taken]
        self._pool = pool
        arrays = self._loader.stack_rows([samples[row] for row in self._rows])
        if not self._is_whole:
            arrays = as_subsets(arrays, self._rows, size)
        metrics = arrays.pop("metrics", {})
        return HostBatch(arrays=arrays, epoch=taken[0][0] // self._order.epoch, bad=tuple(bad), metrics=metrics)

    def get_state(self) -> StreamState:
        """Return the position of the stream after the last batch, fit for JSON."""
        pool = sorted(self._pool)
        order = self._order.state(self._seen, oldest=pool[0] if pool else None)
        return {**self._stream, **order, "seen": self._seen, "bad": self._tally.bad, "pool": pool}

    def set_state(self, state: StreamState) -> None:
        """Go on after the batch at which `get_state` gave `state`.

        Raises:
            DataError: the state is of another stream, or a sample of its pool cannot be read any more.
        """
        state = self._order.upgraded(state)
        check_stream(state, self._stream, self._tally.path, ("pool",))
        self._order.resume(state, state["seen"])
        self._tally.seen, self._tally.bad, self._tally.in_a_row = state["seen"], state["bad"], 0
        self._pool = {}
        for position in state["pool"]:
            row = self._stand_ins.fill(self._order[position], turn=position)
            if row.sample is None:
                raise self._tally.no_stand_in(row.skipped)
            self._pool[position] = row.sample
        self._go_to(state["seen"])

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()

    def _go_to(self, seen: int) -> None:
        self.close()
        self._seen = seen
        self._reader = self._read()

    def _read(self) -> Generator[FilledRow[OmniSample], None, None]:
        seen, order = self._seen, self._order

        def fill(count: int) -> FilledRow[OmniSample]:
            return self._stand_ins.fill(order[seen + count], turn=seen + count)

        counts = grain.MapDataset.range(order.total - seen)
        return read_ahead(counts, fill, workers=self._config.workers, batch_size=self._config.batch_size)


def train_data(
    config: DataConfig,
    tokenizer: Tokenizer | None,
    tokens_per_image: int,
    rows: Sequence[int] | None = None,
    processor: Processor | None = None,
) -> TrainData | PackedData:
    """Return the stream that the settings ask for: with samples packed where `processor` packs them."""
    if processor is not None and processor.config.packed > 1:
        return PackedData(config, processor, rows)
    return TrainData(config, tokenizer, tokens_per_image, rows, processor)
