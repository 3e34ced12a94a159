"""Whichever of four processes is killed, and whenever: the others end, and the run goes on bit for bit.

HETJAX_KILLS=20 python -m pytest -n 0 -s -m slow tests/training/test_kill_one_of_four.py

kills so often, in programs that are compiled as a user's are and with evaluations in between, and says where each
death fell and what came of it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hetjax.data import write_digits
from tests.harness.processes import free_port
from tests.harness.training_job import PEER_LOST, PROCESSES, Metrics, TrainingJob, checkpoints, command, rows

KILLS = int(os.environ.get("HETJAX_KILLS", "3"))
THOROUGH = "HETJAX_KILLS" in os.environ
SEED = 167
# Seconds. A slow machine may take long from step to step.
PEER_TIMEOUT, JOIN_TIMEOUT, MARGIN = 20, 20, 10
CHECKPOINT_EVERY = 4
STEPS = CHECKPOINT_EVERY * KILLS
# How many seconds after the last line of metrics before it a checkpoint may still be under way.
WRITING = 0.35


@dataclasses.dataclass(frozen=True)
class Kill:
    """A planned death: of which process, in which phase of the job, and where between its begin (0) and end (1)."""

    victim: int
    phase: str
    part: float


@dataclasses.dataclass(frozen=True)
class Death:
    """What came of it: where it fell, and the exit codes of the others and the seconds until the last was gone."""

    kill: Kill
    at: str
    watched: bool
    codes: dict[int, int]
    seconds: float
    message: str

    def __str__(self) -> str:
        codes = ", ".join(f"{index}: {code}" for index, code in self.codes.items())
        return f"process {self.kill.victim} killed, {self.at} | {codes} | {self.seconds:.2f} s | {self.message}"


def planned(count: int) -> list[Kill]:
    """Each process in turn in an order by chance; one death in four at start-up, one in four in a checkpoint."""
    chance = random.Random(SEED)
    kills = []
    while len(kills) < count:
        victims, phases = list(range(PROCESSES)), ["start-up", "checkpoint", "step", "step"]
        chance.shuffle(victims)
        chance.shuffle(phases)
        kills += [Kill(victim, phase, chance.random()) for victim, phase in zip(victims, phases, strict=True)]
    return kills[:count]


def await_moment(kill: Kill, job: TrainingJob, metrics: Metrics, resumed: int, startup: float) -> None:
    """Until the moment of a kill, in a job that resumes after step `resumed` and starts in about `startup` seconds."""
    if kill.phase == "start-up":
        time.sleep(kill.part * startup)
        return
    steps = CHECKPOINT_EVERY if kill.phase == "checkpoint" else 1 + int(kill.part * (2 * CHECKPOINT_EVERY - 1))
    job.wait_for(lambda: (metrics.steps() or 0) >= resumed + steps)
    # On from the line of that step: anywhere in the step after it, or in the checkpoint that follows it.
    time.sleep(WRITING * (kill.part * 10 % 1))


def place(run: Path, metrics: Metrics, resumed: int) -> str:
    """Where a job is, by its files."""
    now = metrics.steps()
    if now is None or now == resumed:
        return "start-up"
    partial = [int(path.name.removesuffix(".partial")) for path in (run / "checkpoints").glob("*.partial")]
    # One that an earlier death left lies ahead, or is as old as the checkpoint resumed from.
    return f"checkpoint of step {now}" if any(resumed < step <= now for step in partial) else f"step {now + 1}"


def lose_one(kill: Kill, job: TrainingJob, run: Path, resumed: int, startup: float) -> Death:
    """Kill as planned, and see that the others end as they should."""
    metrics = Metrics(run)
    await_moment(kill, job, metrics, resumed, startup)
    at, watched = place(run, metrics, resumed), job.watches()
    job.kill(kill.victim)
    limit = PEER_TIMEOUT + MARGIN if watched else JOIN_TIMEOUT + 2 * PEER_TIMEOUT + MARGIN
    codes, seconds = job.end(limit, without=kill.victim)
    assert 0 not in codes.values(), job.all_output()
    assert job.left_behind() == []
    if watched:
        died = f"error: process {kill.victim} of {PROCESSES} (host {os.uname().nodename}, pid "
        died += f"{job.children[kill.victim].pid}) died; last seen: "
        assert all(code == PEER_LOST for code in codes.values()), job.all_output()
        assert all(died in job.output(index) for index in codes), job.all_output()
    told = [line for line in job.output(min(codes)).splitlines() if line.startswith("error: ")]
    return Death(kill, at, watched, codes, max(seconds.values()), told[0] if told else "no message")


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by item and path, read on the host by Orbax alone."""
    found = {}
    for item in sorted((run / "checkpoints" / str(step)).iterdir()):
        if item.name == "description" or item.is_file():
            continue
        handler = ocp.PyTreeCheckpointHandler()
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree)
        tree = handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        for path, value in jax.tree.leaves_with_path(tree):
            found[item.name + jax.tree_util.keystr(path)] = np.asarray(value)
    return found


def assert_equal_runs(whole: Path, killed: Path) -> None:
    """Two runs to the end have left the same, bit for bit."""
    assert [row["step"] for row in rows(killed)] == list(range(1, STEPS + 1))
    for expected, actual in zip(rows(whole), rows(killed), strict=True):
        assert actual == expected
    assert checkpoints(whole)[-1] == checkpoints(killed)[-1] == STEPS
    described = [run / "checkpoints" / str(STEPS) / "description" / "metadata" for run in (whole, killed)]
    assert json.loads(described[0].read_text()) == json.loads(described[1].read_text())
    expected, actual = arrays(whole, STEPS), arrays(killed, STEPS)
    assert expected.keys() == actual.keys() and len(expected) > 20
    for path in expected:
        assert expected[path].dtype == actual[path].dtype, path
        assert expected[path].tobytes() == actual[path].tobytes(), path


def summary(deaths: list[Death]) -> str:
    fell = collections.Counter(" ".join(death.at.split()[:1]) for death in deaths)
    codes = collections.Counter(code for death in deaths for code in death.codes.values())
    lines = [f"where: {dict(fell)}, before the watch: {sum(not death.watched for death in deaths)}"]
    lines.append(f"exit codes of the others: {dict(codes)}")
    for name, watched in (("under the watch", True), ("before it", False)):
        seconds = [death.seconds for death in deaths if death.watched == watched]
        if seconds:
            lines.append(f"seconds {name}: median {statistics.median(seconds):.2f}, max {max(seconds):.2f}")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="what is left behind is looked up in /proc")
def test_killing_any_of_four_at_any_point_ends_the_others_and_the_run_resumes_bit_for_bit(tmp_path):
    data, port = write_digits(tmp_path / "digits"), free_port()
    settings = {"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY}
    settings |= {"peer_timeout": PEER_TIMEOUT, "join_timeout": JOIN_TIMEOUT}
    if THOROUGH:
        settings |= {"data__eval": data / "heldout.jsonl", "eval__every": 2 * CHECKPOINT_EVERY + 2}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with TrainingJob(tmp_path / "logs-whole", command(whole, data, **settings), port, quick=not THOROUGH) as job:
        metrics = Metrics(whole)
        job.wait_for(lambda: (metrics.steps() or 0) >= 1)
        startup = time.monotonic() - job.started
        codes, _ = job.end(900)
        assert set(codes.values()) == {0}, job.all_output()
        assert job.left_behind() == []

    deaths = []
    words = command(killed, data, **settings)
    for count, kill in enumerate(planned(KILLS)):
        resumed = max(checkpoints(killed), default=0)
        with TrainingJob(tmp_path / f"logs-{count}", words, port, quick=not THOROUGH) as job:
            deaths.append(lose_one(kill, job, killed, resumed, startup))
            print(f"{count + 1}: {deaths[-1]}", flush=True)
    resumed = max(checkpoints(killed))
    with TrainingJob(tmp_path / "logs-last", words, port, quick=not THOROUGH) as job:
        codes, _ = job.end(900)
        assert set(codes.values()) == {0}, job.all_output()
        assert f"resuming after step {resumed} " in job.output(0)

    print(summary(deaths))
    assert_equal_runs(whole, killed)
