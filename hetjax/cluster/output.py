"""Show or store the output of the processes of a launched job."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

JOIN_SECONDS = 5.0


class Output:
    """The output of one process, to the terminal or to a log.

    The first process writes to the terminal itself; whole lines of the others are shown, those of
    stderr with their number.

    With a folder for logs, each process writes to a file of it, and with `show` what the first writes is shown, too.

    Attributes:
        stdout, stderr: What to start the process with.
        path: Its log file, if there is one.
    """

    def __init__(self, process: int, logs: Path | None, *, show: bool = True):
        self.path = logs / f"process-{process}.log" if logs else None
        self._process = process
        self._log = self.path.open("ab", buffering=0) if self.path else None
        self._threads: list[threading.Thread] = []
        if self._log is None:
            self.stdout = self.stderr = subprocess.PIPE if process else None
        else:
            self.stdout = self.stderr = self._log if process or not show else subprocess.PIPE

    def follow(self, child: subprocess.Popen) -> None:
        """Begin to show what the process writes to pipes."""
        number = f"process {self._process}: ".encode() if self._process else b""
        for pipe, shown, prefix in ((child.stdout, sys.stdout, b""), (child.stderr, sys.stderr, number)):
            if pipe is not None:
                thread = threading.Thread(target=self._show, args=(pipe, shown.buffer, prefix), daemon=True)
                thread.start()
                self._threads.append(thread)

    def finish(self) -> None:
        """Once the process has ended: wait until all of its output has been shown."""
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        if self._log is not None:
            self._log.close()

    def _show(self, pipe: IO[bytes], shown: IO[bytes], prefix: bytes) -> None:
        for line in pipe:
            if self._log is not None:
                self._log.write(line)
            shown.write(prefix + line)
            shown.flush()
