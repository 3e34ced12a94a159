"""What ends a training job of four processes: a death under the launcher, a stop, a setting that differs, a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hetjax.data import write_digits
from tests.harness.compile_quickly import environment
from tests.harness.processes import free_port
from tests.harness.training_job import (
    PEER_LOST,
    PROCESSES,
    ROOT,
    Metrics,
    TrainingJob,
    checkpoints,
    command,
    end_session,
    rows,
    session,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="what is left behind is looked up in /proc"),
]
# Seconds; a machine that others use may need more than its share.
SOON = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"))


def children_of(parent: int) -> dict[int, int]:
    """The running processes of a launcher by their number in the job."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            variables = dict(word.partition("=")[::2] for word in (path / "environ").read_text().split("\0"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(variables["JAX_PROCESS_ID"])] = int(path.name)
    return found


def test_a_launched_job_that_loses_one_ends_with_its_code_and_leaves_no_process(data, tmp_path):
    victim = 2
    launch = [sys.executable, "-m", "hetjax", "launch", "--processes", str(PROCESSES), "--logs", str(tmp_path / "logs")]
    with (tmp_path / "told").open("w") as told:
        launcher = subprocess.Popen(
            [*launch, "--", *command(tmp_path / "run", data)],
            cwd=ROOT, env=environment(quick=True), stdout=told, stderr=told, start_new_session=True,
        )  # fmt: skip
    children = {}
    try:
        log, end = tmp_path / "logs" / "process-0.log", time.monotonic() + 120
        while not (log.exists() and "samples" in log.read_text()):
            assert launcher.poll() is None and time.monotonic() < end, (tmp_path / "told").read_text()
            time.sleep(0.05)
        children = children_of(launcher.pid)
        assert sorted(children) == list(range(PROCESSES))
        os.kill(children[victim], signal.SIGKILL)
        assert launcher.wait(SOON) == 128 + signal.SIGKILL
        assert f"process {victim} of {PROCESSES} was ended by SIGKILL" in (tmp_path / "told").read_text()
        assert [pid for leader in children.values() for pid in session(leader)] == []
        for index in sorted(set(children) - {victim}):
            told_by = (tmp_path / "logs" / f"process-{index}.log").read_text()
            assert (
                f"process {victim} of {PROCESSES} (host {os.uname().nodename}, pid {children[victim]}) died" in told_by
            )
    finally:
        for leader in (launcher.pid, *children.values()):
            end_session(leader)
        launcher.wait()


def test_a_stopped_process_ends_the_job_within_the_peer_timeout_and_is_named(data, tmp_path):
    victim, timeout = 3, 5
    words = command(tmp_path / "run", data, peer_timeout=timeout, steps=1000)
    with TrainingJob(tmp_path / "logs", words, free_port()) as job:
        metrics = Metrics(tmp_path / "run")
        job.wait_for(lambda: (metrics.steps() or 0) >= 2)
        job.children[victim].send_signal(signal.SIGSTOP)
        codes, seconds = job.end(timeout + SOON, without=victim)
        silent = f"pid {job.children[victim].pid}) sent no heartbeat for {timeout} s: it is stopped, or its machine"
        for index, code in codes.items():
            assert code == PEER_LOST, job.all_output()
            assert f"error: process {victim} of {PROCESSES} (host" in job.output(index)
            assert silent in job.output(index), job.all_output()
        assert timeout / 2 < max(seconds.values()) < timeout + SOON
        assert job.left_behind() == []
        # Woken up, it finds its job gone and ends too.
        job.children[victim].send_signal(signal.SIGCONT)
        codes, _ = job.end(SOON)
        assert codes[victim] == PEER_LOST, job.all_output()


def test_a_seed_that_differs_in_one_process_is_refused_by_all_before_the_first_step(data, tmp_path):
    words = command(tmp_path / "run", data)
    with TrainingJob(tmp_path / "logs", words, free_port(), different={2: ["--seed", "1"]}) as job:
        codes, _ = job.end(120)
        assert set(codes.values()) <= {2, PEER_LOST}, job.all_output()
        for index in range(PROCESSES):
            assert "process 2 has another config than process 0" in job.output(index), job.all_output()
    # Not even a folder: nothing was begun.
    assert not (tmp_path / "run").exists()


def test_sigterm_to_one_saves_all_after_the_same_step_and_the_same_command_goes_on(data, tmp_path):
    run, steps = tmp_path / "run", 14
    words, port = command(run, data, steps=steps, checkpoint_every=1000), free_port()
    with TrainingJob(tmp_path / "logs-0", words, port) as job:
        metrics = Metrics(run)
        job.wait_for(lambda: (metrics.steps() or 0) >= 3)
        job.children[1].send_signal(signal.SIGTERM)
        codes, _ = job.end(SOON)
        assert set(codes.values()) == {130}, job.all_output()
        [step] = checkpoints(run)
        assert 3 <= step < steps
        assert f"stopped after step {step}; run the same command to go on" in job.output(0)
        assert [row["step"] for row in rows(run)] == list(range(1, step + 1))
        assert job.left_behind() == []
    with TrainingJob(tmp_path / "logs-1", words, port) as job:
        codes, _ = job.end(240)
        assert set(codes.values()) == {0}, job.all_output()
        assert f"resuming after step {step} " in job.output(0)
    assert [row["step"] for row in rows(run)] == list(range(1, steps + 1))
    assert checkpoints(run)[-1] == steps
