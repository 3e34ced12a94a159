"""Stream training batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import grain
import numpy as np

from hetjax.data.bad_samples import BadTally, FilledRow, StandIns
from hetjax.data.chat import RowCapacity, RowUse, Sample
from hetjax.data.chat.collate import HostArrays
from hetjax.data.config import DataConfig
from hetjax.data.host_batch import HostBatch
from hetjax.data.order import SampleOrder
from hetjax.data.position_set import pack_positions, unpack_positions
from hetjax.data.prefetch import read_ahead
from hetjax.data.run_shapes import run_shapes
from hetjax.data.sample_loader import SampleLoader
from hetjax.data.sources import TrainSources
from hetjax.data.waiting import Taken, Waiting
from hetjax.errors import DataError
from hetjax.stages.row_subset import RowSubset, check_rows

MEASURED = 512
"""Samples by which the shapes of a stream are chosen."""

_STREAM_KEYS = ("shuffle", "seed")


class StreamState(TypedDict, total=False):
    """The position in a stream of samples, fit for JSON.

    `shuffle`, `seed`, `sources` and `legs` fix its order (see `SampleOrder`); `seen` and `bad` count samples; `pool`
    holds the positions of samples that are read and in no batch yet (`hetjax.data.position_set`), and `shapes` what
    batches have for shapes, where they were chosen.
    """

    shuffle: bool
    seed: int
    sources: dict[str, list[int]]
    legs: list[list[Any]]
    seen: int
    bad: int
    pool: list[Any]
    shapes: dict[str, Any]


class TrainData(Iterator[HostBatch]):
    """Batches for ever or for `config.epochs` passes, in an order that `config.seed` fixes.

    Each epoch has every sample once, in a new order if `config.shuffle`, or as often as the weights or repeats of their
    sources say; batches run on across the border between epochs. Row r of batch b holds the sample at position
    b * batch_size + r of that order. If it is bad, the next good one behind it in the dataset stands in for it (after
    the last, the first), whatever other rows hold; a bad sample shifts nothing. So a row does not depend on the others,
    and a process may load only the `rows` (numbers within a batch, ascending) that it needs: they equal those rows of
    the whole batch. No other sample is read. None loads all. Threads read ahead of the step.

    With `processor.packed` above 1 samples share rows, and with `shapes` above 1 rows of about one size share a batch
    (see `hetjax.data.waiting`). Which do depends on all samples before, so every process reads every sample, and keeps
    its `rows` alone. The samples that are read and in no batch yet wait.

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
        self._packing = loader.processor.config
        self._is_whole = rows is None
        self._rows = tuple(range(config.batch_size) if rows is None else rows)
        check_rows(self._rows, config.batch_size)
        self._groups = self._packing.packed > 1 or config.shapes > 1
        self._read_rows = tuple(range(config.batch_size)) if self._groups else self._rows
        self._order = sample_order(config, sources)
        self._stream = {"shuffle": config.shuffle, "seed": config.seed}
        self._tally = BadTally(path=source.path, samples=len(source), max_share=config.max_bad_share)
        self._stand_ins = StandIns(
            lambda index, turn: loader.load(source, index, turn=turn),
            source,
            most=self._tally.most_on_end,
            ends=sources.ends,
        )
        self._seen = 0  # samples of the whole stream, in batches given out or waiting
        self._waiting: Waiting | None = None
        self._chosen = False  # the shapes, by what samples take; it may be one alone
        self._use_shapes([loader.processor.capacity])
        self._reader = self._read()

    @property
    def shapes(self) -> list[RowCapacity]:
        """Return the shapes that rows of a batch have, the one of the least work first."""
        return self._shapes

    def choose_shapes(self, *, work: Callable[[], Mapping[str, float]], splits: Mapping[str, int]) -> None:
        """Choose the shapes of this stream, before its next batch, where it is to have several and none are chosen.

        They are chosen by what samples of the next pass take, the same in every process. What `work()` returns, asked
        only then, and `splits` are as for `hetjax.data.run_shapes.run_shapes`. Raises DataError where none of these
        samples can be used.
        """
        left = min(self._order.epoch, self._order.total - self._seen)
        if self._config.shapes == 1 or self._chosen or not left:
            return
        every = np.linspace(self._seen, self._seen + left - 1, MEASURED)
        rows = list(self._fill(sorted({int(position) for position in every})))
        uses = [row.sample.use for row in rows if row.sample is not None]
        if not uses:
            raise self._tally.no_stand_in(rows[0].skipped)
        packed = self._packing.packed > 1
        capacity = self._loader.processor.capacity
        shapes = run_shapes(uses, capacity, most=self._config.shapes, packed=packed, work=work(), splits=splits)
        self._use_shapes(shapes)
        self._chosen = True

    def _use_shapes(self, shapes: Sequence[RowCapacity]) -> None:
        """Let batches have these shapes; the samples that wait go on waiting."""
        packing, before = self._packing, self._waiting
        self._shapes = list(shapes)
        self._waiting = Waiting(
            [shape.most for shape in shapes],
            rows=len(self._read_rows),
            most=packing.packed,
            window=packing.packing_window,
        )
        for position, sample in before.samples.items() if before else ():
            self._waiting.add(position, sample)

    def __next__(self) -> HostBatch:
        size = self._config.batch_size
        left = self._left() if self._groups else len(self._read_rows)
        if not self._groups and self._order.total - self._seen < size:
            raise StopIteration
        # Kept only with the whole batch, so that a state is never within one.
        waiting, tally, bad, read = self._waiting.copy(), dataclasses.replace(self._tally), [], 0
        try:
            while (taken := waiting.take(ended=read == left)) is None and read < left:
                row = next(self._reader)
                _count_row(row, tally)
                bad += [row.skipped] if row.skipped else []
                waiting.add(self._position(self._seen, read), row.sample)
                read += 1
        except DataError:
            self._go_to(self._seen)  # asked again, the stream tries the same samples again
            raise
        if taken is None:
            self._go_to(self._seen)
            raise StopIteration
        epoch = (taken.oldest if self._groups else self._seen) // self._order.epoch
        self._waiting, self._tally = waiting, tally
        self._seen += read if self._groups else size
        return self._batch(taken, epoch, bad)

    def _batch(self, taken: Taken, epoch: int, bad: Sequence[str]) -> HostBatch:
        size, shape = self._config.batch_size, self._shapes[taken.rank]
        own = [taken.rows[row] for row in self._rows] if self._groups else taken.rows
        arrays = self._loader.collate(own, shape)
        if not self._is_whole:
            arrays = _as_subsets(arrays, self._rows, size)
        metrics = arrays.pop("metrics", {})
        samples = [sample for row in taken.rows for sample in row]
        scale = size / len(taken.rows) if taken.rows else 0.0
        return HostBatch(
            arrays=arrays,
            epoch=epoch,
            bad=tuple(bad),
            metrics=metrics,
            samples=round(len(samples) * scale),
            use=RowUse.total((sample.use for sample in samples), like=shape.most).times(scale),
            capacity=shape.most.times(size),
        )

    def get_state(self) -> StreamState:
        """Return the position of the stream after the last batch, fit for JSON.

        `seen` counts the samples of all rows. So does `bad`, in proportion where this process loads only some rows.
        """
        loaded, size, pool = len(self._read_rows), self._config.batch_size, list(self._waiting.samples)
        bad = (self._tally.bad * size + loaded // 2) // loaded if loaded else 0
        order = self._order.state(self._seen, oldest=pool[0] if pool else None)
        state = {**self._stream, **order, "seen": self._seen, "bad": bad, "pool": pack_positions(pool)}
        return state | ({"shapes": self._described(self._shapes)} if self._chosen else {})

    def set_state(self, state: StreamState) -> None:
        """Go on after the batch at which `get_state` gave `state`, of these or of other rows.

        With the shapes of the state, where the settings that they were chosen by are those of this run.

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
        pool = unpack_positions(state.get("pool", []))
        if pool and not self._groups:
            raise DataError(
                f"dataset '{self._tally.path}': {len(pool)} samples of the saved state wait for a batch of their size, "
                "but processor.packed and data.shapes are 1; set one of them to 2 or more"
            )
        self._order.resume(state, state["seen"])
        loaded, size = len(self._read_rows), self._config.batch_size
        self._tally.seen = state["seen"] * loaded // size
        self._tally.bad = (state["bad"] * loaded + size // 2) // size
        self._tally.in_a_row = 0
        self._waiting = None
        saved = self._saved_shapes(state)
        self._chosen = saved is not None
        self._use_shapes(saved or [self._loader.processor.capacity])
        for position, row in zip(pool, self._fill(pool), strict=True):
            if row.sample is None:
                raise self._tally.no_stand_in(row.skipped)
            self._waiting.add(position, row.sample)
        self._go_to(state["seen"])

    def _saved_shapes(self, state: StreamState) -> list[RowCapacity] | None:
        """Return the shapes of a state; None where it has none, or other settings than this run's chose them."""
        saved, capacity = state.get("shapes"), self._loader.processor.capacity
        if saved is None:
            return None
        shapes = [capacity.sized(amounts) for amounts in saved["amounts"]]
        return shapes if self._described([*shapes[:-1], capacity]) == saved else None

    def _described(self, shapes: Sequence[RowCapacity]) -> dict[str, Any]:
        """Return shapes by the amounts of their resources, and the settings that they were chosen by; fit for JSON."""
        amounts = [{name: amount for (_, name), amount in shape.amounts.items()} for shape in shapes]
        return {"most": self._config.shapes, "packed": self._packing.packed > 1, "amounts": amounts}

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()

    def _go_to(self, seen: int) -> None:
        self.close()
        self._seen = seen
        self._reader = self._read()

    def _position(self, seen: int, count: int) -> int:
        """Return the position that this process reads after `count` others behind the first `seen` of the stream."""
        batch, row = divmod(count, len(self._read_rows))
        return seen + batch * self._config.batch_size + self._read_rows[row]

    def _left(self) -> int:
        """Return how many more samples this process reads."""
        batches, rest = divmod(self._order.total - self._seen, self._config.batch_size)
        last = rest if self._groups else 0  # without groups they are no batch
        return batches * len(self._read_rows) + last

    def _read(self) -> Generator[FilledRow[Sample], None, None]:
        """Return the samples that this process reads of the stream after those seen so far."""
        position = functools.partial(self._position, self._seen)
        return self._fill(grain.MapDataset.range(self._left()).map(position))

    def _fill(self, positions: Sequence[int] | grain.MapDataset) -> Generator[FilledRow[Sample], None, None]:
        """Return the samples of these positions."""
        order = positions if isinstance(positions, grain.MapDataset) else grain.MapDataset.source(positions)

        def fill(position: int) -> FilledRow[Sample]:
            return self._stand_ins.fill(self._order[position], turn=position)

        return read_ahead(order, fill, workers=self._config.workers, batch_size=max(len(self._read_rows), 1))


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
