"""The thread that watches is watched, too."""

import subprocess
import sys

from hetjax.cluster.exit_codes import PEER_LOST

SCRIPT = """
import time
from hetjax.cluster import watchdog as module

class Broken:
    def run(self):
        raise OSError(24, "Too many open files")

class Store:
    pass

module.Watchdog._open_server = lambda *_: Broken()
module.Watchdog.start(0, 2, timeout=5, store=Store())
time.sleep(60)
"""


def test_a_watchdog_that_fails_ends_its_process_and_says_why():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == PEER_LOST
    assert "the watchdog of the other processes failed: OSError: [Errno 24] Too many open files" in done.stderr
