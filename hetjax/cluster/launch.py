"""Start the processes of a job on this machine, and end them together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hetjax.cluster.environment import ADDRESS, LOCAL_DEVICES, PROCESS, PROCESSES
from hetjax.cluster.exit_codes import PEER_LOST, STOPPED
from hetjax.cluster.output import Output

POLL_SECONDS = 0.05
# Seconds after a failure in which the others may end by themselves, and then after being asked to.
GRACE = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
FINAL_CODES = (0, 2, STOPPED)
"""Exit codes after which starting again would change nothing: done, a mistake in what was given, stopped as asked."""


def launch_processes(
    command: Sequence[str],
    *,
    processes: int,
    devices_per_process: int = 1,
    logs: Path | None = None,
    port: int | None = None,
    grace: float = GRACE,
    show: bool = True,
    restarts: int = 0,
) -> int:
    """Run `python command...` in so many processes of one job and wait for them; returns the exit code of the job.

    Args:
        command: What follows the name of the interpreter.
        processes: How many to start.
        devices_per_process: Process i uses this many accelerators of the machine, from i times as many on.
        logs: A folder; each process writes its output to process-i.log there, and only the first shows it too.
        port: Where they meet on this machine; null for one that is free.
        grace: Seconds from the first failure until the rest is asked to end, and as many again until it is killed.
        show: Whether what they print is shown; with `logs` it may be kept there alone.
        restarts: How often all are started again after a failure that may not come again: any code but those of
            `FINAL_CODES`, and no signal to this process.

    Returns:
        0 if all ended with 0; else the code of the first process that failed by itself, not because of another one
        (128 + the signal's number, if one ended it). It is that of the last start.
    """
    signals: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in SIGNALS}
    try:
        for start in range(restarts + 1):
            code = _run_once(command, processes, devices_per_process, port, _Group(grace, logs, show, signals))
            if code in FINAL_CODES or signals or start == restarts:
                break
            print(f"starting all {processes} again, {start + 1} of {restarts} times", file=sys.stderr, flush=True)
        return code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run_once(command: Sequence[str], processes: int, devices_each: int, port: int | None, group: _Group) -> int:
    try:
        address = f"127.0.0.1:{port or _free_port()}"
        for index in range(processes):
            devices = range(index * devices_each, (index + 1) * devices_each)
            group.start(command, index, _variables(address, processes, index, devices))
        return group.wait()
    finally:
        group.kill()


def _variables(address: str, processes: int, index: int, devices: Sequence[int]) -> dict[str, str]:
    return {
        ADDRESS: address,
        # No other machine should reach it.
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        PROCESSES: str(processes),
        PROCESS: str(index),
        LOCAL_DEVICES: ",".join(map(str, devices)),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class _Group:
    """The processes of one job; `signals` are those that have come to this process, which are sent on."""

    def __init__(self, grace: float, logs: Path | None, show: bool, signals: Sequence[int]):
        self._grace, self._logs, self._show = grace, logs, show
        self._children: list[subprocess.Popen] = []
        self._outputs: list[Output] = []
        self._signals = signals
        self._forwarded = 0
        self._failed: list[int] = []

    def start(self, command: Sequence[str], index: int, variables: dict[str, str]) -> None:
        """Start one process, in a session of its own: Ctrl-C in the terminal then reaches it once, through here."""
        output = Output(index, self._logs, show=self._show)
        bound = [sys.executable, "-I", "-S", str(Path(__file__).with_name("die_with_parent.py")), str(os.getpid())]
        self._children.append(
            subprocess.Popen(
                [*bound, sys.executable, *command],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output.stdout,
                stderr=output.stderr,
                start_new_session=True,
            )
        )
        output.follow(self._children[-1])
        self._outputs.append(output)

    def wait(self) -> int:
        """Wait until all have ended; returns the exit code of the job."""
        deadline, step = None, self._terminate
        while any([self._alive(index) for index in range(len(self._children))]):
            self._forward()
            if self._failed and deadline is None:
                deadline = time.monotonic() + self._grace
            if deadline is not None and time.monotonic() > deadline:
                step()
                deadline, step = time.monotonic() + self._grace, self.kill
            time.sleep(POLL_SECONDS)
        for output in self._outputs:
            output.finish()
        return self._result()

    def _alive(self, index: int) -> bool:
        child = self._children[index]
        if child.returncode is None and child.poll() is not None:
            # Helpers that it started and left behind.
            _kill_session(child)
            if child.returncode != 0:
                self._failed.append(index)
        return child.returncode is None

    def _forward(self) -> None:
        for number in self._signals[self._forwarded :]:
            self._forwarded += 1
            # The first asks to stop after the step, the second ends a process; the third is for one that hangs.
            if self._forwarded > 2:
                self.kill()
            for child in self._running():
                child.send_signal(number)

    def _terminate(self) -> None:
        for child in self._running():
            child.terminate()

    def kill(self) -> None:
        """End what still runs, at once."""
        for child in self._running():
            _kill_session(child)

    def _running(self) -> list[subprocess.Popen]:
        return [child for child in self._children if child.returncode is None]

    def _result(self) -> int:
        if not self._failed:
            return 0
        index = next((i for i in self._failed if self._children[i].returncode != PEER_LOST), self._failed[0])
        code = self._children[index].returncode
        if self._show:
            what = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            where = f"; its output is in {self._outputs[index].path}" if self._logs else ""
            print(f"process {index} of {len(self._children)} {what}{where}", file=sys.stderr, flush=True)
        return code if code > 0 else 128 - code


def _kill_session(child: subprocess.Popen) -> None:
    """Kill a process and the helpers that it started. There may be none left, or (macOS) only ones that have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
