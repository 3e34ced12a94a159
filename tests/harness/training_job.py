"""Starts train.py by hand as a job of four processes of two CPU devices each, for tests of what ends it.

    with TrainingJob(tmp_path / "logs", command(run, data), port) as job:
        job.wait_for(lambda: Metrics(run).steps() >= 3)
        job.kill(2)
        codes, seconds = job.end(30, without=2)

Every process leads a session of its own, without a launcher that would end the others when one is lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harness.compile_quickly import environment
from tests.harness.paths import ROOT

PROCESSES = 4
PEER_LOST = 75
# The encoder lies on processes 0 and 1, the language model's first stage on 2, its second on 3.
PLACEMENT = "{vision: {devices: 0-3, data: 4}, llm: {devices: 4-7, stage: 2, data: 1, tensor: 2}}"


def command(run: Path, data: Path, **overrides: Any) -> list[str]:
    """train.py on the digits, small, with a checkpoint every four steps; dots in names as two underscores."""
    settings = {
        "run_dir": run, "data.train": data / "train.jsonl", "data.eval": "null", "eval.max_new_tokens": 3,
        "data.batch_size": 16, "checkpoint_every": 4, "profile_every": 5, "placement": PLACEMENT, "steps": 16,
    } | {name.replace("__", "."): value for name, value in overrides.items()}  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["train.py", "--config", "configs/digits.yaml", *words]


class TrainingJob:
    """Four processes of one command; `different` are words that one process, by number, has in addition."""

    def __init__(
        self,
        logs: Path,
        words: list[str],
        port: int,
        *,
        quick: bool = True,
        different: dict[int, list[str]] | None = None,
    ):
        logs.mkdir(parents=True)
        self.logs = [logs / f"{index}.log" for index in range(PROCESSES)]
        self.children = []
        self.started = time.monotonic()
        for index, log in enumerate(self.logs):
            place = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(PROCESSES),
                "JAX_PROCESS_ID": str(index),
            }
            with log.open("w") as output:
                child = subprocess.Popen(
                    [sys.executable, *words, *(different or {}).get(index, [])],
                    cwd=ROOT, env=environment(quick=quick) | place, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
            self.children.append(child)

    def __enter__(self) -> TrainingJob:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            end_session(child.pid)
            child.wait()

    def output(self, index: int) -> str:
        """Return what a process has printed so far."""
        return self.logs[index].read_text()

    def all_output(self) -> str:
        codes = [child.poll() for child in self.children]
        return "\n".join(f"── process {i}, exit code {codes[i]}\n{self.output(i)}" for i in range(PROCESSES))

    def watches(self) -> bool:
        """Whether the processes watch each other for sure: the first prints a summary of the data once all do."""
        return "samples" in self.output(0)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        """Until something is true of a job all of whose processes run."""
        end = time.monotonic() + seconds
        while not condition():
            assert all(child.poll() is None for child in self.children), f"ended early\n{self.all_output()}"
            assert time.monotonic() < end, f"waited {seconds:g} s\n{self.all_output()}"
            time.sleep(0.005)

    def kill(self, index: int) -> None:
        """`kill -9` a process that runs."""
        assert self.children[index].poll() is None, f"ended early\n{self.all_output()}"
        self.children[index].send_signal(signal.SIGKILL)

    def end(self, seconds: float, *, without: int | None = None) -> tuple[dict[int, int], dict[int, float]]:
        """Wait until all, or all but one, have ended: their exit codes, and after how many seconds they came."""
        awaited = [index for index in range(PROCESSES) if index != without]
        began, after = time.monotonic(), {}
        while len(after) < len(awaited):
            now = time.monotonic() - began
            after |= {i: now for i in awaited if i not in after and self.children[i].poll() is not None}
            assert now < seconds, f"still there after {seconds:g} s\n{self.all_output()}"
            time.sleep(0.01)
        return {index: self.children[index].returncode for index in awaited}, after

    def left_behind(self) -> list[int]:
        """Processes of the sessions of those that have ended, zombies apart."""
        return [pid for child in self.children if child.poll() is not None for pid in session(child.pid)]


class Metrics:
    """The metrics of a run's folder as the job at hand writes them.

    A resumed run first replaces the file, to drop what came after its checkpoint; until then it is another job's.
    """

    def __init__(self, run: Path):
        self.path = run / "metrics.jsonl"
        self._before = self._file()

    def steps(self) -> int | None:
        """The last step that is logged; None while the file is not this job's."""
        return None if self._file() == self._before else self.path.read_text().count("\n")

    def _file(self) -> int | None:
        return self.path.stat().st_ino if self.path.exists() else None


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without how long things took."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("tokens_per_second", "data_wait", "tflops_per_second", "mfu", "seconds/", "idle/")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in found]


def checkpoints(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, in order."""
    folder = run / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def session(leader: int) -> list[int]:
    """The running processes of a session (Linux: from /proc)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def end_session(leader: int) -> None:
    """Kill all that is left of a session."""
    for pid in session(leader):
        os.kill(pid, signal.SIGKILL)
