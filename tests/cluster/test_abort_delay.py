"""A thread that aborts the process leaves the watchdog time to end it with its own code."""

import subprocess
import sys

import pytest

ABORTING = """
import ctypes, os, signal, threading, time
from hetjax.cluster.abort_delay import delay_abort
{before}
delay_abort()
# Outside Python's lock, as JAX's threads are.
threading.Thread(target=ctypes.CDLL(None).abort, daemon=True).start()
time.sleep(1)
os._exit(75)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")
@pytest.mark.parametrize(
    ("before", "code"),
    [("", 75), ("signal.signal(signal.SIGABRT, lambda *_: None)", -6)],
    ids=["alone", "another handler stays"],
)
def test_an_abort_waits_for_the_watchdog(before, code):
    script = ABORTING.format(before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == code, done.stderr
