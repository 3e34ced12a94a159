"""Where the output of one process of a launched job goes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

JOIN_SECONDS = 5.0


class Output:
    """The first process writes to the terminal itself; of the others, whole lines pass, errors with their number.

    With a folder for logs, each process writes to a file of it, and with `show` what the first writes is shown as well.

    Attributes:
        stdout, stderr: What to start the process with.
        path: Its log, if there is one.
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
        """Begin to pass on what the process writes to pipes."""
        number = f"process {self._process}: ".encode() if self._process else b""
        for pipe, shown, prefix in ((child.stdout, sys.stdout, b""), (child.stderr, sys.stderr, number)):
            if pipe is not None:
                thread = threading.Thread(target=self._pass_on, args=(pipe, shown.buffer, prefix), daemon=True)
                thread.start()
                self._threads.append(thread)

    def finish(self) -> None:
        """Once the process has ended: wait until all of its output has been passed on."""
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        if self._log is not None:
            self._log.close()

    def _pass_on(self, pipe: IO[bytes], shown: IO[bytes], prefix: bytes) -> None:
        for line in pipe:
            if self._log is not None:
                self._log.write(line)
            shown.write(prefix + line)
            shown.flush()
