"""The folder of a run, which belongs to one job at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import IO

from hetjax.errors import RunFolderError

try:
    import fcntl
except ImportError:  # not on Windows: there nothing keeps two runs apart
    fcntl = None

LOCK_FILE = "owner"


class RunFolder:
    """A run's folder that this job owns.

    The owner holds a lock of the operating system on the file `owner`, which says who it is; the lock ends with the
    process, however that ends, so that a job that was killed blocks nobody.

    Args:
        path: the folder, which exists.
        lock: the open lock file; None in processes other than the main one, which write nothing there by themselves.
    """

    def __init__(self, path: Path, lock: IO[str] | None = None):
        self.path, self._lock = path, lock

    def check(self) -> None:
        """Raise RunFolderError where the folder is not the one any more that this job began in."""
        if self._lock is None:
            return
        own = os.fstat(self._lock.fileno())
        with contextlib.suppress(FileNotFoundError):
            there = (self.path / LOCK_FILE).stat()
            if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
                return
        raise RunFolderError(
            f"the run's folder {self.path} was deleted or replaced while it ran, with all that was written there; the "
            "run ends here: nothing that it would write could be relied on"
        )

    def close(self) -> None:
        """Own it no longer."""
        if self._lock is not None:
            self._lock.close()


def own_folder(path: Path, *, is_main: bool) -> RunFolder:
    """Make a run's folder, and own it until `close`. Raises RunFolderError where another job owns it; it says which."""
    path.mkdir(parents=True, exist_ok=True)
    if not is_main:
        return RunFolder(path)
    lock = (path / LOCK_FILE).open("a+", encoding="utf-8")
    try:
        _take(lock, path)
        lock.truncate(0)
        lock.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        lock.flush()
    except BaseException:
        lock.close()
        raise
    return RunFolder(path, lock)


def _take(lock: IO[str], path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise RunFolderError(
            f"another run owns {path}: {_owner(lock.read())}; wait for its end, stop it, or give another run_dir"
        ) from None
    except OSError as error:
        raise RunFolderError(
            f"the file system of {path} keeps no locks ({error.strerror}), so that two runs could write there at once; "
            "give a run_dir on another one"
        ) from None


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "a process that did not write down its name"
