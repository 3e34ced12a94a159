"""hetjax launch: a command as several processes of one job on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hetjax.cluster.launch import launch_processes
from hetjax.errors import ConfigError
from hetjax.tools.outcome import Outcome


def launch(
    *,
    processes: int,
    devices_per_process: int = 1,
    logs: str | None = None,
    port: int | None = None,
    restarts: int = 0,
    command: Sequence[str],
) -> Outcome:
    """Run a Python command as several processes of one job on this machine.

    `hetjax launch --processes 4 -- train.py --config FILE`. All end when one of them fails. The exit code is that of
    the first that failed, or 128 + the number of the signal that ended it.

    Args:
        processes: How many processes.
        devices_per_process: GPUs for each of them; means nothing on CPUs.
        logs: A folder where each process writes its output to a file of its own; null for the terminal.
        port: The port of this machine where the processes meet; null for any that is free.
        restarts: How often all are started again when one is killed, lost or fails; a run goes on from its last
            checkpoint. Not after a mistake in the command (2), nor when stopped by a signal.
        command: The Python file and its arguments.

    Raises ConfigError.
    """
    for name, value in (("processes", processes), ("devices_per_process", devices_per_process)):
        if value < 1:
            raise ConfigError(f"{name}={value}: must be at least 1")
    if restarts < 0:
        raise ConfigError(f"restarts={restarts}: must be 0 or more")
    if port is not None and not 0 < port < 65536:
        raise ConfigError(f"port={port}: must be between 1 and 65535")
    if not command:
        raise ConfigError("nothing to launch; give the command behind --: hetjax launch --processes 4 -- train.py ...")
    if not command[0].startswith("-") and not Path(command[0]).is_file():
        raise ConfigError(f"{command[0]}: no such file; behind -- stands a Python file and its arguments, or -m MODULE")
    folder = Path(logs) if logs else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    code = launch_processes(
        command,
        processes=processes,
        devices_per_process=devices_per_process,
        logs=folder,
        port=port,
        restarts=restarts,
    )
    if code:
        raise SystemExit(code)
    return Outcome(numbers={"processes": processes}, shown=())
