"""Watches a run of one process, which has no peers that could: it ends where it stands still."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from hetjax.cluster.messages import Status
from hetjax.cluster.peers import RESUME


class OwnWatch:
    """A thread that prints what all threads are doing, and ends the process, when its status is the same for too long.

    Args:
        status: returns what the process is doing.
        timeout: Seconds without progress that end it.
        end: prints a message and ends the process.
    """

    def __init__(self, status: Callable[[], Status], *, timeout: float, end: Callable[[str], NoReturn]):
        self._status, self._timeout, self._end = status, timeout, end
        self._closed = threading.Event()

    def run(self) -> None:
        """Watch until `close`."""
        poll = min(1.0, self._timeout / 10)
        seen, still, looked = self._status(), 0.0, time.monotonic()
        while not self._closed.wait(poll):
            now, before, looked = self._status(), looked, time.monotonic()
            # A process that was stopped as a whole stood still for one look, however long that took.
            still = 0.0 if now != seen or now.unlimited else still + min(looked - before, 2 * poll)
            seen = now
            if still > self._timeout:
                faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
                self._end(
                    f"no progress for {self._timeout:g} s (step_timeout) in {now.doing}; what each thread was doing "
                    f"stands above; {RESUME}"
                )

    def close(self, reason: str | None) -> None:
        """Stop watching; a reason is for peers, of which there are none."""
        self._closed.set()
