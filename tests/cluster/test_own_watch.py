"""A run of one process that stands still ends, and says where."""

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from hetjax.cluster.exit_codes import PEER_LOST
from hetjax.cluster.messages import Status
from hetjax.cluster.own_watch import OwnWatch
from tests.harness.compile_quickly import environment
from tests.harness.paths import ROOT

AT = Status(position=(3,), doing="step 3, its batch", unlimited=False)


class Ended(Exception):
    pass


@pytest.fixture
def watch():
    """Runs a watch over a status that a test may change, and returns what it ended with."""
    found, threads = [], []

    def end(message):
        found.append(message)
        raise Ended

    def start(status):
        now = [status]
        own = OwnWatch(lambda: now[0], timeout=0.3, end=end)

        def run():
            with contextlib.suppress(Ended):
                own.run()

        threads.append((own, threading.Thread(target=run)))
        threads[-1][1].start()
        return now, found

    yield start
    for own, thread in threads:
        own.close(None)
        thread.join(5)


def test_the_same_step_for_too_long_ends_it(watch, capfd):
    _, found = watch(AT)
    limit = time.monotonic() + 20
    while not found and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(found) == 1
    assert found[0].startswith("no progress for 0.3 s (step_timeout) in step 3, its batch; ")
    assert "own_watch.py" in capfd.readouterr().err  # the stacks of all threads


def test_progress_and_what_may_take_any_time_do_not(watch):
    now, found = watch(Status(position=(3,), doing="compiling", unlimited=True))
    time.sleep(1)
    assert not found
    end = time.monotonic() + 1
    step = 0
    while time.monotonic() < end:
        step += 1
        now[0] = Status(position=(step,), doing=f"step {step}", unlimited=False)
        time.sleep(0.01)
    now[0] = Status(position=(), doing="done", unlimited=True)
    assert not found


@pytest.mark.parametrize("block", ["", "with job.waiting_for_devices(): "])
def test_a_process_that_hangs_ends_with_a_code_and_the_stacks(block):
    script = f"""
import time
from hetjax.cluster.job import join_job
def stuck():
    time.sleep(60)
with join_job(peer_timeout=5, join_timeout=5, step_timeout=1) as job:
    with job.unlimited("compiling"):
        time.sleep(1.5)
    job.before_batch(7)
    {block}stuck()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(quick=True),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == PEER_LOST, done.stderr
    assert "in stuck" in done.stderr
    where = "step 7, its batch" + (", waiting for the devices" if block else "")
    assert f"error: no progress for 1 s (step_timeout) in {where}; what each" in done.stderr
