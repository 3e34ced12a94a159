"""Become a command that the kernel kills when the process PARENT dies: python die_with_parent.py PARENT COMMAND...

It runs between the launcher and its child, by path and without importing hetjax, since code that runs between fork and
exec in a process with threads may lock up. Linux only: elsewhere the command runs without it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the kernel was asked to watch it.
        if os.getppid() != int(sys.argv[1]):
            sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])
