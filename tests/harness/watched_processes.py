"""Plain processes under one watchdog, without JAX programs: the store is a folder, and each does what a test says."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from hetjax.cluster.watchdog import Watchdog
from hetjax.errors import ClusterError
from tests.harness.fork_server import CONTEXT

TIMEOUT = 1.5


class FileStore:
    """A key-value store in a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def put(self, key, value):
        path = self.folder / key.replace("/", "-")
        path.with_suffix(".part").write_text(value)
        path.with_suffix(".part").rename(path)

    def get(self, key, timeout):
        path, end = self.folder / key.replace("/", "-"), time.monotonic() + timeout
        while not path.exists():
            if time.monotonic() > end:
                raise ClusterError(f"no value {key}")
            time.sleep(0.01)
        return path.read_text()

    def coordinator_host(self):
        return "127.0.0.1"


class Job:
    """Processes that each ran a script of (name, *arguments) orders; their exit codes, errors and times."""

    def __init__(self, folder, scripts, *, timeout=TIMEOUT, join_timeout=10.0):
        self.folder, self.scripts = folder, scripts
        arguments = (str(folder), len(scripts), timeout, join_timeout)
        self.processes = [
            CONTEXT.Process(target=_run, args=(index, script, *arguments)) for index, script in enumerate(scripts)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.join()

    def wait_ready(self):
        """Until each process has come to its `ready` order."""
        end = time.monotonic() + 100
        while len(list(self.folder.glob("ready-*"))) < len(self.scripts):
            assert time.monotonic() < end, "the processes did not start"
            time.sleep(0.01)

    def signal(self, index, number):
        os.kill(self.processes[index].pid, number)

    def end(self, seconds, without=()):
        """The exit codes of all but some, which must end within `seconds`, and how long it took."""
        started = time.monotonic()
        for index, process in enumerate(self.processes):
            if index not in without:
                process.join(max(0, started + seconds - time.monotonic()))
        codes = {i: p.exitcode for i, p in enumerate(self.processes) if i not in without}
        return codes, time.monotonic() - started

    def printed(self, index):
        return (self.folder / f"stderr-{index}").read_text()

    def name(self, index):
        return f"process {index} of {len(self.scripts)} (host {os.uname().nodename}, pid {self.processes[index].pid})"


def _run(index, script, folder, processes, timeout, join_timeout):
    os.dup2(os.open(f"{folder}/stderr-{index}", os.O_CREAT | os.O_WRONLY), 2)
    if script[0] == ("absent",):
        return
    if script[0][0] == "late":
        time.sleep(script[0][1])
    watchdog = Watchdog.start(index, processes, timeout=timeout, store=FileStore(folder), join_timeout=join_timeout)
    for order, *arguments in script:
        if order == "at":
            watchdog.set_position(*arguments)
        elif order == "sleep":
            time.sleep(*arguments)
        elif order == "unlimited":
            with watchdog.unlimited("compiling"):
                time.sleep(*arguments)
        elif order == "walk":
            for step in range(*arguments):
                watchdog.set_position((step, 0), f"step {step}")
                time.sleep(0.1)
        elif order == "ready":
            Path(f"{folder}/ready-{index}").touch()
        elif order == "close":
            watchdog.close(*arguments)
        elif order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif order == "exit":
            sys.exit(*arguments)
