"""Exit codes of a run, and how a process ends whose job is lost."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import NoReturn

# EX_TEMPFAIL of sysexits.h: no fault of this process, and the same command may well succeed.
PEER_LOST = 75
# Ended by Ctrl-C or SIGTERM as a shell reports it, after a checkpoint.
STOPPED = 130


def end_process(message: str) -> NoReturn:
    """Print one line on stderr and end at once with the code `PEER_LOST`, from any thread.

    The main thread may be stuck in a collective that never returns, so no clean-up of it can run.
    """
    # A thread, since the stuck main thread may hold the lock of a stream.
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(1.0)
    with contextlib.suppress(OSError):
        os.write(2, f"error: {message}\n".encode())
    os._exit(PEER_LOST)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
