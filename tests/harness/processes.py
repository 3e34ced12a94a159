"""Runs a function in several processes that form one JAX cluster on this machine, for tests.

    results = run_processes(count, check_something, devices=2, timeout=120, name="value")

The function is a module-level one of a test module. Every process calls it with the same keyword
arguments after `jax.distributed.initialize`, each with `devices` CPU devices of its own, and its return
value (anything that pickles) comes back in process order. All processes are ended when the call returns,
whatever happens.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.harness.compile_quickly import environment
from tests.harness.fork_server import CONTEXT
from tests.harness.paths import ROOT

FRESH = multiprocessing.get_context("spawn")


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
    fresh: bool = False,
    **arguments: Any,
) -> list[Any]:
    """Call `function(**arguments)` in `count` processes; their results.

    Args:
        optimize: compile as a user's run does.
        share: compile equal programs of a process once (`tests.harness.compile_once`).
        fresh: start interpreters anew (3 s of imports each), so that sets of strings are in another order in each
            process, as in a job of a user's; forks of one server have them in the same.

    Raises ProcessFailed.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "devices": devices, "x64": x64, "port": free_port(), "count": count, "share": share, "quick": not optimize,
            "environment": environment(quick=not optimize),
        }  # fmt: skip
        results = [Path(folder) / f"result-{index}" for index in range(count)]
        logs = [Path(folder) / f"log-{index}" for index in range(count)]
        job = (function.__module__, function.__name__, arguments, settings)
        children = [
            (FRESH if fresh else CONTEXT).Process(
                target=_child, args=(*job, index, str(results[index]), str(logs[index]))
            )
            for index in range(count)
        ]
        try:
            for child in children:
                child.start()
            _wait(children, timeout)
            printed = "\n".join(
                f"── process {i}, exit code {c.exitcode}\n{logs[i].read_text() if logs[i].exists() else ''}"
                for i, c in enumerate(children)
            )
            if any(child.exitcode != 0 for child in children):
                raise ProcessFailed(printed)
            return [pickle.loads(result.read_bytes()) for result in results]
        finally:
            for child in children:
                if child.pid is not None:
                    _end(child)


def _end(child: BaseProcess) -> None:
    """With all that it started; it leads a session unless it is ended before it has begun."""
    if child.exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
    child.join()


def _wait(children: list[BaseProcess], timeout: float) -> None:
    """Until all have ended, one has failed, or time is up."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        codes = [child.exitcode for child in children]
        if all(code == 0 for code in codes) or any(code for code in codes):
            return
        time.sleep(0.05)


def _child(
    module: str, name: str, arguments: dict[str, Any], settings: dict[str, Any], index: int, result: str, log: str
) -> None:
    os.setsid()
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # At once, so that a log shows how far its process was when it was killed.
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(settings["environment"])
    # XLA reads the environment when a backend starts; JAX, which the server has imported already, is told.
    import jax

    jax.config.update("jax_disable_most_optimizations", settings["quick"])
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
        value = getattr(importlib.import_module(module), name)(**arguments)
        Path(result).write_bytes(pickle.dumps(value))
    except BaseException:
        # At once: a usual exit would wait for the other processes.
        traceback.print_exc()
        os._exit(1)
    jax.distributed.shutdown()
