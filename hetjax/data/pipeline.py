"""Stream training batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import grain
import numpy as np

from hetjax.data.bad_samples import BadTally, FilledRow, StandIns
from hetjax.data.chat import Sample
from hetjax.data.chat.collate import HostArrays
from hetjax.data.config import DataConfig
from hetjax.data.order import SampleOrder
from hetjax.data.prefetch import read_ahead
from hetjax.data.sample_loader import SampleLoader
from hetjax.data.sources import TrainSources
from hetjax.errors import DataError
from hetjax.stages.row_subset import RowSubset, check_rows

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

    `arrays` holds by module and port what `hetjax.data.chat.make_arrays` makes: each a numpy array, or a `RowSubset` of
    that shape where `TrainData` loads certain rows only.

    `epoch` is the pass over the data, from 0, in which the batch begins; a batch may end in the next one.
    `bad` names the samples whose turn it was in these rows but that cannot be used, each as "file:line: reason".
    """

    arrays: Mapping[str, Mapping[str, np.ndarray | RowSubset]]
    epoch: int
    bad: tuple[str, ...]


class TrainData(Iterator[HostBatch]):
    """Batches for ever or for `config.epochs` passes, in an order that `config.seed` fixes.

    Each epoch has every sample once, in a new order if `config.shuffle`, or as often as the weights or repeats of their
    sources say; batches run on across the border between epochs. Row r of batch b holds the sample at position
    b * batch_size + r of that order. If it is bad, the next good one behind it in the dataset stands in for it (after
    the last, the first), whatever other rows hold; a bad sample shifts nothing. So a row does not depend on the others,
    and a process may load only the `rows` (numbers within a batch, ascending) that it needs: they equal those rows of
    the whole batch. No other sample is read. None loads all. Threads read ahead of the step.

    With `processor.packed` above 1 samples share rows. A pool of batch_size * `processor.packed` samples is shared out
    by `SampleLoader.share_rows`; of its rows the batch takes those with the oldest samples, and what is left stays in
    the pool. How samples share rows depends on all of them, so every process reads every sample, and keeps its `rows`
    alone.

    The last samples of all, too few for a batch, are dropped.

    `get_state` after any batch, given to `set_state` of a new object, continues with the same batches,
    whichever rows either loads. Sources may have other weights there, and new sources may be added: each goes on
    where it was.

    Raises:
        DataError: the dataset is missing or empty, or has fewer samples over all its epochs than one
            batch; or too many of those that this process loads are bad (see `BadTally`).
        BatchError: `rows` do not ascend, or are not rows of a batch.
    """

    def __init__(self, loader: SampleLoader, rows: Sequence[int] | None = None):
        config, sources = loader.config, loader.trained
        source = sources.joined
        self._config, self._loader = config, loader
        self._packed = loader.processor.config.packed
        self._is_whole = rows is None
        self._rows = tuple(range(config.batch_size) if rows is None else rows)
        check_rows(self._rows, config.batch_size)
        self._read_rows = self._rows if self._packed == 1 else tuple(range(config.batch_size))
        self._order = sample_order(config, sources)
        self._stream = {"shuffle": config.shuffle, "seed": config.seed}
        self._tally = BadTally(path=source.path, samples=len(source), max_share=config.max_bad_share)
        self._stand_ins = StandIns(
            lambda index, turn: loader.load(source, index, turn=turn),
            source,
            most=self._tally.most_on_end,
            ends=sources.ends,
        )
        self._seen = 0  # samples of the whole stream, in batches given out or in the pool
        self._pool: dict[int, Sample] = {}  # by position in the stream
        self._reader = self._read()

    def __next__(self) -> HostBatch:
        size, total = self._config.batch_size, self._order.total
        stop = min(self._seen + size * self._packed - len(self._pool), total)
        if self._packed == 1 and stop - self._seen < size:
            raise StopIteration
        # Kept only with the whole batch, so that a state is never within one.
        pool, tally, bad = dict(self._pool), dataclasses.replace(self._tally), []
        try:
            for position in self._positions(stop):
                row = next(self._reader)
                _count_row(row, tally)
                bad += [row.skipped] if row.skipped else []
                pool[position] = row.sample
        except DataError:
            self._go_to(self._seen)  # asked again, the stream tries the same samples again
            raise
        rows = self._shared(pool)
        if rows is None:
            self._go_to(self._seen)
            raise StopIteration
        epoch = min([*pool, self._seen]) // self._order.epoch
        arrays = self._loader.collate([[pool[position] for position in row] for row in rows.own])
        self._seen, self._tally = stop, tally
        self._pool = {position: sample for position, sample in pool.items() if position not in rows.taken}
        if not self._is_whole:
            arrays = _as_subsets(arrays, self._rows, size)
        return HostBatch(arrays=arrays, epoch=epoch, bad=tuple(bad))

    def get_state(self) -> StreamState:
        """Return the position of the stream after the last batch, fit for JSON.

        `seen` counts the samples of all rows. So does `bad`, in proportion where this process loads only some rows.
        """
        loaded, size, pool = len(self._read_rows), self._config.batch_size, sorted(self._pool)
        bad = (self._tally.bad * size + loaded // 2) // loaded if loaded else 0
        order = self._order.state(self._seen, oldest=pool[0] if pool else None)
        return {**self._stream, **order, "seen": self._seen, "bad": bad, "pool": pool}

    def set_state(self, state: StreamState) -> None:
        """Go on after the batch at which `get_state` gave `state`, of these or of other rows.

        Raises:
            DataError: the state is of a dataset of another size, or another order of samples, or lies
                beyond the last epoch; or a sample of its pool cannot be read any more, or has no row of its own here.
        """
        state = self._order.upgraded(state)
        _check_stream(state, self._stream, self._tally.path)
        if state["seen"] > self._order.total:
            raise DataError(
                f"dataset '{self._tally.path}': the saved state is after {state['seen']} samples, "
                f"but epochs={self._config.epochs} end after {self._order.total}; raise epochs"
            )
        pool = state.get("pool", [])
        if pool and self._packed == 1:
            raise DataError(
                f"dataset '{self._tally.path}': {len(pool)} samples of the saved state wait for a row that they share, "
                "but processor.packed is 1; set it to 2 or more"
            )
        self._order.resume(state, state["seen"])
        loaded, size = len(self._read_rows), self._config.batch_size
        self._tally.seen = state["seen"] * loaded // size
        self._tally.bad = (state["bad"] * loaded + size // 2) // size
        self._tally.in_a_row = 0
        self._pool = {}
        for position in pool:
            row = self._stand_ins.fill(self._order[position], turn=position)
            if row.sample is None:
                raise self._tally.no_stand_in(row.skipped)
            self._pool[position] = row.sample
        self._go_to(state["seen"])

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()

    def _shared(self, pool: Mapping[int, Sample]) -> _Rows | None:
        """Return the rows of the batch that a pool gives; None where it gives too few."""
        positions = sorted(pool)
        if self._packed == 1:
            return _Rows(taken=frozenset(positions), own=[[position] for position in positions])
        size = self._config.batch_size
        shared = self._loader.share_rows([pool[position] for position in positions], at_least=size)
        taken = [[positions[i] for i in row] for row in sorted(shared)[:size]]
        if len(taken) < size:
            return None
        return _Rows(
            taken=frozenset(position for row in taken for position in row), own=[taken[row] for row in self._rows]
        )

    def _go_to(self, seen: int) -> None:
        self.close()
        self._seen = seen
        self._reader = self._read()

    def _positions(self, stop: int) -> list[int]:
        """Return the positions from `seen` to `stop` that this process reads."""
        size, seen = self._config.batch_size, self._seen
        starts = range(seen, stop, size)
        return [start + row for start in starts for row in self._read_rows if start + row < stop]

    def _read(self) -> Generator[FilledRow[Sample], None, None]:
        """Return the rows that this process reads, batch by batch, of the stream after the samples seen so far."""
        config, rows, seen, order = self._config, self._read_rows, self._seen, self._order
        batches, rest = divmod(order.total - seen, config.batch_size)
        last = 0 if self._packed == 1 else rest  # without packing they are no batch

        def fill(count: int) -> FilledRow[Sample]:
            batch, row = divmod(count, len(rows))
            position = seen + batch * config.batch_size + rows[row]
            return self._stand_ins.fill(order[position], turn=position)

        counts = grain.MapDataset.range(batches * len(rows) + last)
        return read_ahead(counts, fill, workers=config.workers, batch_size=len(rows))


class _Rows(NamedTuple):
    """The rows of a batch: the positions of all samples in them, and those in each row that this process keeps."""

    taken: frozenset[int]
    own: list[list[int]]


def _count_row(row: FilledRow[Sample], tally: BadTally) -> None:
    """Count a row's sample as good or bad. Raises DataError where it is one bad sample too many."""
    if row.skipped is None:
        tally.good()
        return
    tally.skip(row.skipped)
    if row.sample is None:
        raise tally.no_stand_in(row.skipped)


def _check_stream(state: StreamState, stream: StreamState, path: Path) -> None:
    """Raise DataError unless a saved state is of this very order of samples."""
    missing = {*_STREAM_KEYS, "sources", "legs", "seen", "bad"} - set(state)
    if missing:
        raise DataError(f"data state lacks {', '.join(sorted(missing))}; restore one that get_state returned")
    for key in _STREAM_KEYS:
        if state[key] != stream[key]:
            raise DataError(
                f"dataset '{path}': {key} is {state[key]} in the saved state and {stream[key]} "
                "in this run, so the order of samples cannot continue; use the same, or begin a new run"
            )


def _as_subsets(arrays: HostArrays, rows: tuple[int, ...], batch_size: int) -> dict[str, dict[str, RowSubset]]:
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
