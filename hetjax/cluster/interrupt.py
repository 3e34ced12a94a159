"""Turn Ctrl-C and SIGTERM into a request to stop after the step that is under way."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Inside the block, the first signal sets `requested`; a second one ends the process as usual."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread may set handlers; a run in another thread is its program's to stop.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.__exit__()
