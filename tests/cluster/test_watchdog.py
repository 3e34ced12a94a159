"""A peer that dies, stands still or fails ends every process of its job, and is named; an orderly end does not."""

import re
import signal
import time

import pytest

from hetjax.cluster.exit_codes import PEER_LOST
from tests.harness.watched_processes import TIMEOUT, Job

LATE = 20
"""Seconds that a busy machine may take longer; what a process does by itself lasts twice as long or more."""
ALONE = [pytest.mark.slow, pytest.mark.alone]
WORKING = [("at", (12, 0), "step 12, F0 of llm"), ("ready",), ("walk", 13, 400)]


def blamed(job, index, what, by):
    """Whether each of the others printed exactly one message, about this process."""
    expected = f"error: {job.name(index)} {what}"
    for other in by:
        lines = job.printed(other).splitlines()
        assert len(lines) == 1 and lines[0].startswith(expected), (other, lines)
        assert lines[0].endswith("; run the same command to resume from the last checkpoint")


@pytest.mark.parametrize(("victim", "late"), [(0, LATE), (2, LATE), pytest.param(2, 4, marks=ALONE)])
def test_a_killed_process_ends_the_others_at_once(tmp_path, victim, late):
    with Job(tmp_path, [WORKING] * 4) as job:
        job.wait_ready()
        time.sleep(0.5)
        job.signal(victim, signal.SIGKILL)
        codes, _ = job.end(late)
        assert codes == {i: -signal.SIGKILL if i == victim else PEER_LOST for i in range(4)}
        others = [i for i in range(4) if i != victim]
        blamed(job, victim, "died; last seen: step 1", others)


@pytest.mark.parametrize(("victim", "late"), [(0, LATE), (1, LATE), pytest.param(1, 3, marks=ALONE)])
def test_a_stopped_process_ends_the_others_within_the_timeout(tmp_path, victim, late):
    with Job(tmp_path, [WORKING] * 3) as job:
        job.wait_ready()
        time.sleep(0.3)
        job.signal(victim, signal.SIGSTOP)
        codes, seconds = job.end(TIMEOUT + late, without=[victim])
        assert set(codes.values()) == {PEER_LOST}
        assert TIMEOUT / 2 < seconds < TIMEOUT + late
        blamed(job, victim, f"sent no heartbeat for {TIMEOUT:g} s", [i for i in range(3) if i != victim])


def test_of_many_that_stand_still_the_one_furthest_behind_is_named(tmp_path):
    blocked = [("at", (12, 9), "step 12, B2 of llm"), ("ready",), ("sleep", 100)]
    hung = [("at", (12, 7), "step 12, F3 of llm"), ("ready",), ("sleep", 100)]
    with Job(tmp_path, [blocked, blocked, hung, blocked]) as job:
        job.wait_ready()
        codes, seconds = job.end(TIMEOUT + LATE)
        assert set(codes.values()) == {PEER_LOST}
        assert seconds < TIMEOUT + LATE
        blamed(job, 2, f"made no progress for {TIMEOUT:g} s; last seen: step 12, F3 of llm", range(4))


def test_process_0_that_hangs_names_itself(tmp_path):
    hung = [("at", (3,), "step 3"), ("sleep", 100)]
    with Job(tmp_path, [hung, [("at", (4,), "step 4"), ("sleep", 100)]]) as job:
        assert job.end(TIMEOUT + LATE)[0] == {0: PEER_LOST, 1: PEER_LOST}
        blamed(job, 0, "made no progress", (0, 1))


def test_waiting_for_one_that_may_take_its_time_is_no_hang(tmp_path):
    busy = [("at", (5,), "step 5"), ("unlimited", 2 * TIMEOUT), ("at", (6,), "step 6"), ("close",)]
    waiting = [("at", (6,), "step 6"), ("sleep", 2 * TIMEOUT), ("at", (7,), "step 7"), ("close",)]
    with Job(tmp_path, [waiting, busy, waiting]) as job:
        assert job.end(TIMEOUT + LATE)[0] == {0: 0, 1: 0, 2: 0}
        assert [job.printed(i) for i in range(3)] == ["", "", ""]


def test_a_process_that_dies_while_it_may_take_its_time_is_noticed(tmp_path):
    waiting = [("at", (6,), "step 6"), ("sleep", 100)]
    with Job(tmp_path, [waiting, [("ready",), ("unlimited", 100)], waiting]) as job:
        while not list(tmp_path.glob("ready-1")):
            time.sleep(0.01)
        time.sleep(0.4)
        job.signal(1, signal.SIGKILL)
        assert job.end(LATE)[0] == {0: PEER_LOST, 1: -signal.SIGKILL, 2: PEER_LOST}
        blamed(job, 1, "died; last seen: compiling", (0, 2))


def test_orderly_ends_at_different_times_are_no_death(tmp_path):
    scripts = [[("walk", 1, steps), ("close",)] for steps in (1, 3, 6, 9)]
    with Job(tmp_path, scripts) as job:
        assert set(job.end(TIMEOUT + LATE)[0].values()) == {0}
        assert "".join(job.printed(i) for i in range(4)) == ""


def test_a_death_after_process_0_is_done_still_ends_the_job_with_an_error(tmp_path):
    with Job(tmp_path, [[("at", (1,), "step 1"), ("close",)], [("walk", 1, 6), ("die",)], WORKING]) as job:
        assert job.end(TIMEOUT + LATE)[0] == {0: PEER_LOST, 1: -signal.SIGKILL, 2: PEER_LOST}


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_of_one_is_printed_by_all_and_ends_them(tmp_path, failing):
    scripts = [WORKING] * 3
    scripts[failing] = [("walk", 1, 4), ("close", "the data ended\nafter 3 steps"), ("exit", 2)]
    with Job(tmp_path, scripts) as job:
        codes, seconds = job.end(LATE)
        assert codes == {i: 2 if i == failing else PEER_LOST for i in range(3)}
        assert seconds < LATE
        for other in {0, 1, 2} - {failing}:
            assert job.printed(other) == f"error: {job.name(failing)} stopped: the data ended\nafter 3 steps\n"


def test_a_process_that_never_comes_ends_the_others(tmp_path):
    with Job(tmp_path, [WORKING, WORKING, [("absent",)]], join_timeout=1.0) as job:
        assert job.end(LATE, without=[2])[0] == {0: PEER_LOST, 1: PEER_LOST}
        assert "process 2 of 3 did not join within 1 s" in job.printed(1)


def test_a_client_without_process_0_raises(tmp_path):
    with Job(tmp_path, [[("absent",)], WORKING], join_timeout=0.5) as job:
        assert job.end(LATE)[0] == {0: 0, 1: 1}
        assert re.search("ClusterError: no value", job.printed(1))
