"""Whole jobs over JAX processes: found by their environment, stopped by a signal, ended by a death."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from hetjax.cluster.connect import connect
from hetjax.cluster.environment import Environment
from hetjax.cluster.exit_codes import PEER_LOST
from hetjax.errors import ClusterError
from tests.harness.paths import ROOT
from tests.harness.processes import free_port

JOB = str(ROOT / "tests" / "harness" / "cluster_job.py")


class Started:
    """A process of a group, whose output is in a file."""

    def __init__(self, folder, name, command, variables):
        self.log = folder / f"log-{name}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def end(self, seconds=60):
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.returncode is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def by_hand(folder, count, steps, port):
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    command = [sys.executable, JOB, str(folder), str(steps)]
    return [Started(folder, i, command, variables | {"JAX_PROCESS_ID": str(i)}) for i in range(count)]


def stepping(folder, count):
    """The process ids, once all are at work."""
    end = time.monotonic() + 60
    while len(list(folder.glob("started-*"))) < count:
        assert time.monotonic() < end, "".join(log.read_text() for log in folder.glob("log-*"))
        time.sleep(0.02)
    time.sleep(0.2)
    return [int((folder / f"started-{i}").read_text()) for i in range(count)]


def last_steps(folder, count):
    return [int((folder / f"end-{i}").read_text()) for i in range(count)]


def test_a_slurm_step_connects_and_runs_to_its_end(tmp_path):
    slurm = {
        "SLURM_JOB_ID": str(free_port() % 4096),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
    }
    command = [sys.executable, JOB, str(tmp_path), "5"]
    group = [Started(tmp_path, i, command, slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(2)]
    assert [member.end() for member in group] == [0, 0], "".join(member.log.read_text() for member in group)
    assert last_steps(tmp_path, 2) == [5, 5]


def test_ctrl_c_to_the_launcher_stops_all_after_the_same_step(tmp_path):
    launch = [sys.executable, "-m", "hetjax", "launch", "--processes", "2", "--", JOB, str(tmp_path), "100000"]
    launcher = Started(tmp_path, "launcher", launch, {})
    try:
        stepping(tmp_path, 2)
        launcher.process.send_signal(signal.SIGINT)
    finally:
        code = launcher.end()
    assert code == 130, launcher.log.read_text()
    assert len(set(last_steps(tmp_path, 2))) == 1


@pytest.mark.parametrize(
    ("victim", "seconds"),
    [
        (0, 40),  # a missing heartbeat would be noticed after 60
        pytest.param(1, 40, marks=pytest.mark.slow),
        pytest.param(3, 40, marks=pytest.mark.slow),
        pytest.param(1, 5, marks=[pytest.mark.slow, pytest.mark.alone]),
    ],
)
def test_a_death_ends_the_others_though_they_wait_in_a_collective(tmp_path, victim, seconds):
    count = 4 if victim == 3 else 2
    group = by_hand(tmp_path, count, 100000, free_port())
    try:
        os.kill(stepping(tmp_path, count)[victim], signal.SIGKILL)
        started = time.monotonic()
    finally:
        codes = [member.end(seconds + 20) for member in group]
    others = [member for i, member in enumerate(group) if i != victim]
    assert time.monotonic() - started < seconds
    assert codes[victim] == -signal.SIGKILL
    for member in others:
        assert member.process.returncode == PEER_LOST, member.log.read_text()
        assert f"error: process {victim} of {count} (host {os.uname().nodename}" in member.log.read_text()


def alone(port, process):
    """The place of a process whose peers do not exist."""
    coordinator = f"127.0.0.1:{port}"
    return Environment(manager="hand", processes=2, process=process, coordinator=coordinator, local_devices=None)


def test_a_coordinator_that_nobody_serves_is_named():
    port = free_port()
    message = f"process 1 of 2 could not reach process 0 at 127.0.0.1:{port} for 0.3 s"
    with pytest.raises(ClusterError, match=message):
        connect(alone(port, 1), peer_timeout=5, join_timeout=0.3)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"process 0 cannot listen on port {port}"):
            connect(alone(port, 0), peer_timeout=5)


@pytest.mark.slow
def test_processes_that_never_come_end_the_first_with_a_message():
    script = (
        "from hetjax.cluster.connect import connect; from tests.cluster.test_job import alone\n"
        f"connect(alone({free_port()}, 0), peer_timeout=5, join_timeout=1)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == PEER_LOST, done.stderr
    assert "error: process 0 of 2: the processes did not all meet at 127.0.0.1:" in done.stderr
