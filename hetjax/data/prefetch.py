"""Read samples ahead of the step by threads."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

import grain

T = TypeVar("T")


def read_ahead(
    order: grain.MapDataset, load: Callable[[int], T], *, workers: int, batch_size: int
) -> Generator[T, None, None]:
    """Return `load(item)` for each item of `order`, in order, by `workers` threads that stay two batches ahead.

    A thread takes several samples at a time: a hand-over for each would cost more than a small image
    takes to decode. With 0 workers nothing is read ahead. Closing the iterator stops the threads.
    """
    chunk = max(1, batch_size // (2 * workers)) if workers else 1
    chunks = order.batch(chunk, batch_fn=list).map(lambda items: [load(item) for item in items])
    ahead = max(workers, -(-2 * batch_size // chunk)) if workers else 0
    reader = iter(chunks.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)))
    try:
        for loaded in reader:
            yield from loaded
    finally:
        reader.close()
