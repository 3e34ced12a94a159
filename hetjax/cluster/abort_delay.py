"""Hold up an abort of JAX's runtime, so that the watchdog can say which process died.

When process 0 dies, JAX's coordination client aborts every other process as soon as its connection closes, with a
stack trace and no name. The watchdog knows of it as soon, but its thread may have to wait for the processor: the abort
would win that race on a busy machine, and with it the exit code. JAX 0.10 and 0.12 take a callback in place of the
abort, but fail to call one from Python (std::bad_cast).
"""

from __future__ import annotations

import ctypes
import os
import signal

ABORT_DELAY = 6
"""Seconds. The number of the signal: a handler is called with it, and POSIX allows `sleep` in a handler."""


def delay_abort() -> None:
    """Let a thread that aborts this process sleep `ABORT_DELAY` seconds first. A handler that was set before stays."""
    if os.name != "posix":
        return
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before = library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
    if before is not None:  # SIG_DFL is the null pointer
        library.signal(signal.SIGABRT, before)
