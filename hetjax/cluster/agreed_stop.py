"""Stop all processes of a job after the same step when any of them gets Ctrl-C or SIGTERM."""

from __future__ import annotations

import itertools
import math
import threading
import time

from hetjax.cluster import key_value_store as store
from hetjax.cluster.interrupt import StopRequest
from hetjax.errors import ClusterError

# How often a process checks whether another one was asked to stop.
POLL_SECONDS = 0.25
AGREE_SECONDS = 0.02

# Every process opens its blocks in the same order, so the count is the same in all.
_blocks = itertools.count()


class AgreedStop:
    """Inside the block, a signal to one process or to several makes `reached` true after one step for all.

        with AgreedStop() as stop:
            while step < steps and not stop.reached(step):
                step = train(step)

    In a run of one process it is a `StopRequest`. In a job, a thread checks several times a second whether any
    process was asked to stop. It then publishes this process's limit: the step under way, the first that the process
    does not pass before all have agreed. `reached` holds the process at that step, and there alone, until all have
    published theirs; the largest is the step to stop after, and nobody has passed it. The thread publishes even where
    the main thread waits in a collective for a slower process, so no two processes wait for each other.
    A process that has left the block is past stopping: the others then go on to their end.

    JAX's `reached_preemption_sync_point` agrees on a step too, but for SIGTERM alone, and it takes SIGTERM away from
    the moment of connecting on, so that a process that compiles could not be ended by it.
    """

    def __init__(self) -> None:
        self._request = StopRequest()
        self._changed = threading.Condition()
        self._left = threading.Event()
        self._at = 0
        self._limit: float = math.inf
        self._agreed: float | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._folder = ""
        # So often that process 0 can answer all processes.
        self._poll_seconds = POLL_SECONDS * max(1.0, store.processes() / 256)

    def __enter__(self) -> AgreedStop:
        if store.processes() > 1:
            self._folder = f"hetjax/stop/{next(_blocks)}"
            self._thread = threading.Thread(target=self._watch_for_stop, name="hetjax-stop", daemon=True)
            self._thread.start()
        self._request.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._request.__exit__()
        self._left.set()
        if self._thread is not None:
            self._thread.join()

    def reached(self, step: int) -> bool:
        """Return whether to stop now that `step` is dispatched. To be called for every step, in rising order.

        Without a stop it takes less than a microsecond. Raises ClusterError when the other processes cannot be asked.
        """
        if self._thread is None:
            return self._request.requested
        with self._changed:
            self._at = step
            while step >= self._limit and self._agreed is None and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise ClusterError(f"the processes cannot agree on a step to stop after: {self._error}")
            return self._agreed is not None and step >= self._agreed

    def _watch_for_stop(self) -> None:
        """The thread: wait for a stop to be asked for, then agree on it."""
        try:
            while not self._left.wait(self._poll_seconds):
                if self._request.requested:
                    store.put(f"{self._folder}/asked", "yes")
                elif store.try_get(f"{self._folder}/asked") is None:
                    continue
                self._agree()
                return
            store.put(f"{self._folder}/limit/{store.process()}", str(math.inf))
            if store.process() == 0:
                store.put(f"{self._folder}/agreed", str(math.inf))
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _agree(self) -> None:
        with self._changed:
            self._limit = self._at + 1
        store.put(f"{self._folder}/limit/{store.process()}", str(self._limit))
        # Process 0 reads what all published, even if it has left meanwhile, and the others read what it found.
        find = self._largest if store.process() == 0 else self._published
        while (agreed := find()) is None:
            if self._left.is_set() and store.process() != 0:
                return
            time.sleep(AGREE_SECONDS)
        if store.process() == 0:
            store.put(f"{self._folder}/agreed", str(agreed))
        with self._changed:
            self._agreed = agreed
            self._changed.notify_all()

    def _largest(self) -> float | None:
        limits = store.list_values(f"{self._folder}/limit")
        return max(map(float, limits)) if len(limits) == store.processes() else None

    def _published(self) -> float | None:
        agreed = store.try_get(f"{self._folder}/agreed")
        return None if agreed is None else float(agreed)
