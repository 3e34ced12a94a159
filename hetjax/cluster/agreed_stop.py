"""Ctrl-C and SIGTERM to any process of a job as one stop of all, after the same step."""

from __future__ import annotations

import itertools
import math
import threading
import time

from hetjax.cluster import key_value_store as store
from hetjax.cluster.interrupt import StopRequest
from hetjax.errors import ClusterError

# How often a process looks whether another one was asked to stop.
LOOK_SECONDS = 0.25
AGREE_SECONDS = 0.02

# Every process opens its blocks in the same order, so the count is the same in all.
_blocks = itertools.count()


class AgreedStop:
    """Inside the block, a signal to one process or to several makes `reached` true after one step for all.

        with AgreedStop() as stop:
            while step < steps and not stop.reached(step):
                step = train(step)

    In a run of one process it is a `StopRequest`. In a job, a thread looks twice a second or more often whether
    anybody asks for a stop. It then writes down the first step that this process cannot pass any more without being
    asked: the one under way. `reached` holds the process at that step, and there alone, until all have written
    theirs; the largest is the step to stop after, and nobody has passed it. The thread writes even where the main
    thread waits in a collective for a slower process, so nobody waits for one that waits for him.
    A process that has left the block wants no stop any more: the others then go on to their end.

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
        # So many looks a second that process 0 can answer those of all processes.
        self._look_seconds = LOOK_SECONDS * max(1.0, store.processes() / 256)

    def __enter__(self) -> AgreedStop:
        if store.processes() > 1:
            self._folder = f"hetjax/stop/{next(_blocks)}"
            self._thread = threading.Thread(target=self._look_out, name="hetjax-stop", daemon=True)
            self._thread.start()
        self._request.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._request.__exit__()
        self._left.set()
        if self._thread is not None:
            self._thread.join()

    def reached(self, step: int) -> bool:
        """Whether to stop now that `step` is dispatched. To be called for every step, in rising order.

        Without a stop it takes less than a microsecond. Raises ClusterError when the other processes cannot be asked.
        """
        if self._thread is None:
            return self._request.made
        with self._changed:
            self._at = step
            while step >= self._limit and self._agreed is None and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise ClusterError(f"the processes cannot agree on a step to stop after: {self._error}")
            return self._agreed is not None and step >= self._agreed

    def _look_out(self) -> None:
        """The thread: wait for a stop to be asked for, then agree on it."""
        try:
            while not self._left.wait(self._look_seconds):
                if self._request.made:
                    store.put(f"{self._folder}/asked", "yes")
                elif store.look(f"{self._folder}/asked") is None:
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
        # One process reads what all wrote, even if it has left meanwhile, and the others read what it found.
        find = self._largest if store.process() == 0 else self._told
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

    def _told(self) -> float | None:
        agreed = store.look(f"{self._folder}/agreed")
        return None if agreed is None else float(agreed)
