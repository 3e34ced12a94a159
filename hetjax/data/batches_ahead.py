"""Make the next batch while a step runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from hetjax.data.chat import RowCapacity
from hetjax.data.pipeline import HostBatch, StreamState, TrainData


class BatchesAhead(Iterator[HostBatch]):
    """The batches of a stream, each of which a thread reads and collates as soon as the one before is taken.

    `TrainData` reads samples ahead, but collates them when it is asked: a step would wait for that. With 0
    `data.workers` nothing is made ahead.

    Its state is that of the stream after the last batch taken. What the stream raises comes at the batch's own turn.

    Args:
        data: the stream, which nobody else uses from here on.
    """

    def __init__(self, data: TrainData, *, workers: int):
        self._data, self._ahead = data, workers > 0
        self._state = data.get_state()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches-ahead")
        self._next: Future[tuple[HostBatch, StreamState]] | None = None

    def __next__(self) -> HostBatch:
        if not self._ahead:
            batch, self._state = self._make()
            return batch
        asked, self._next = self._next or self._thread.submit(self._make), None
        batch, self._state = asked.result()
        self._next = self._thread.submit(self._make)
        return batch

    @property
    def shapes(self) -> list[RowCapacity]:
        """The capacities that rows of a batch may have, the smallest first."""
        return self._data.shapes

    def choose_shapes(self, *, work: Callable[[], Mapping[str, float]], splits: Mapping[str, int]) -> None:
        """Choose them where none are chosen yet (`TrainData.choose_shapes`); before the first batch."""
        self._data.choose_shapes(work=work, splits=splits)
        self._state = self._data.get_state()

    def get_state(self) -> StreamState:
        """Return the position of the stream after the last batch taken, fit for JSON."""
        return self._state

    def set_state(self, state: StreamState) -> None:
        """Go on after the batch at which `get_state` gave `state`. Raises DataError as the stream does."""
        self._wait()
        self._data.set_state(state)
        self._state = self._data.get_state()

    def close(self) -> None:
        """Stop reading, behind the batch that is under way."""
        self._wait()
        self._thread.shutdown()
        self._data.close()

    def _make(self) -> tuple[HostBatch, StreamState]:
        return next(self._data), self._data.get_state()

    def _wait(self) -> None:
        """Let nobody but the caller use the stream, and forget the batch that was made ahead."""
        if self._next is not None:
            self._next.exception()
            self._next = None
