"""Runs a function in several processes that form one JAX cluster on this machine, for tests.

    results = run_processes(count, check_something, devices=2, timeout=120, name="value")

The function is a module-level one of a test module. Every process calls it with the same keyword
arguments after `jax.distributed.initialize`, each with `devices` CPU devices of its own, and its return
value (anything that pickles) comes back in process order. All processes are ended when the call returns,
whatever happens.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harness.compile_quickly import environment
from tests.harness.paths import ROOT


class ProcessFailed(AssertionError):
    """A process of the group failed or ran out of time; the message holds what all of them printed."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_processes(
    count: int,
    function: Callable[..., Any],
    *,
    devices: int,
    timeout: float = 120,
    x64: bool = False,
    optimize: bool = False,
    share: bool = True,
    **arguments: Any,
) -> list[Any]:
    """Call `function(**arguments)` in `count` processes; their results.

    Args:
        optimize: compile as a user's run does.
        share: compile equal programs of a process once (`tests.harness.compile_once`).

    Raises ProcessFailed.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job"
        settings = {"devices": devices, "x64": x64, "port": free_port(), "count": count, "share": share}
        job.write_bytes(pickle.dumps((function.__module__, function.__name__, arguments, settings)))
        logs = [Path(folder) / f"log-{index}" for index in range(count)]
        children = []
        try:
            for index, log in enumerate(logs):
                with log.open("w") as output:
                    command = [sys.executable, "-m", "tests.harness.processes", str(job), str(index)]
                    children.append(
                        subprocess.Popen(
                            command,
                            cwd=ROOT,
                            env=environment(quick=not optimize),
                            stdout=output,
                            stderr=output,
                            start_new_session=True,
                        )
                    )
            _wait(children, timeout)
            printed = "\n".join(
                f"── process {i}, exit code {c.poll()}\n{logs[i].read_text()}" for i, c in enumerate(children)
            )
            if any(child.poll() != 0 for child in children):
                raise ProcessFailed(printed)
            return [pickle.loads(Path(f"{job}-{index}").read_bytes()) for index in range(count)]
        finally:
            for child in children:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _wait(children: list[subprocess.Popen], timeout: float) -> None:
    """Until all have ended, one has failed, or time is up."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        codes = [child.poll() for child in children]
        if all(code == 0 for code in codes) or any(code for code in codes):
            return
        time.sleep(0.05)


def _child(job: str, index: int) -> None:
    module, name, arguments, settings = pickle.loads(Path(job).read_bytes())
    import jax

    if settings["share"]:
        from tests.harness.compile_once import compile_equal_programs_once

        compile_equal_programs_once()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", settings["devices"])
    jax.config.update("jax_enable_x64", settings["x64"])
    jax.distributed.initialize(
        f"127.0.0.1:{settings['port']}",
        settings["count"],
        index,
        initialization_timeout=60,
        heartbeat_timeout_seconds=20,
        shutdown_timeout_seconds=20,
    )
    try:
        result = getattr(importlib.import_module(module), name)(**arguments)
    except BaseException:
        # At once: a usual exit would wait for the other processes.
        traceback.print_exc()
        os._exit(1)
    Path(f"{job}-{index}").write_bytes(pickle.dumps(result))
    jax.distributed.shutdown()


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]))
