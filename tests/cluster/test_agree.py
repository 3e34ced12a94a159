"""Agreement before the first step, and one step for all to stop after, over real processes of one JAX cluster."""

import os
import signal
import statistics
import threading
import time

import pytest

from hetjax.cluster import key_value_store as store
from hetjax.cluster.agree import check_agreement
from hetjax.cluster.agreed_stop import AgreedStop
from hetjax.errors import ClusterError
from tests.harness.processes import run_processes

STEPS = 400


def walk(victims=(), number=signal.SIGTERM, at=0, steps=STEPS, pause=0.004):
    """Steps at a speed of its own, held by no collective; the last step, and the seconds of a usual `reached`."""
    me, spent = store.process(), []
    with AgreedStop() as stop:
        for step in range(1, steps + 1):
            time.sleep(pause * (1 + me))
            if step == at and me in victims:
                os.kill(os.getpid(), number)
            before = time.perf_counter()
            reached = stop.reached(step)
            spent.append(time.perf_counter() - before)
            if reached:
                break
    # The median: the machine may take a processor away in some.
    return step, statistics.median(spent)


def checked(value, what="schedule"):
    try:
        check_agreement(what, value, timeout=20)
    except ClusterError as error:
        return str(error)
    return ""


def everything():
    me = store.process()
    found = {"same": checked("abc"), "differs": checked("abc" if me != 2 else "xyz"), "again": checked("abc")}
    found["two differ"] = checked(f"v{min(me, 1)}", "config")
    found["late"] = checked("abc", "version")
    found["no stop"] = walk(steps=60)
    found["sigterm to one"] = walk((1,), signal.SIGTERM, at=5)
    found["sigint to one"] = walk((0,), signal.SIGINT, at=7)
    found["sigint to all"] = walk((0, 1, 2), signal.SIGINT, at=4)
    # Process 0 has left the block long before process 2 is asked.
    found["one has left"] = walk((2,), signal.SIGTERM, at=25, steps=40, pause=0.01 if me else 0.001)
    found["threads"] = [thread.name for thread in threading.enumerate() if thread.name == "hetjax-stop"]
    return found


@pytest.fixture(scope="module")
def found():
    return run_processes(3, everything, devices=1)


def test_equal_values_agree_however_often(found):
    assert [row[name] for row in found for name in ("same", "again", "late")] == [""] * 9


def test_a_difference_is_reported_by_every_process_with_its_values(found):
    message = (
        "process 2 has another schedule than process 0: xyz; process 0 has abc; "
        "run the same command, config and version on all"
    )
    assert [row["differs"] for row in found] == [message] * 3
    assert all(row["two differ"].startswith("processes 1 and 2 have another config") for row in found)


@pytest.mark.parametrize("case", ["sigterm to one", "sigint to one", "sigint to all"])
def test_a_signal_stops_all_after_the_same_step(found, case):
    steps = {row[case][0] for row in found}
    assert len(steps) == 1
    assert 4 <= steps.pop() < STEPS


def test_without_a_signal_all_run_to_the_end_and_asking_costs_nothing(found):
    for step, spent in (row["no stop"] for row in found):
        assert step == 60
        assert spent < 1e-4


def test_a_stop_is_too_late_once_a_process_has_run_to_its_end(found):
    assert [row["one has left"][0] for row in found] == [40] * 3


def test_no_thread_is_left(found):
    assert [row["threads"] for row in found] == [[]] * 3


def test_in_one_process_a_signal_stops_after_the_step_under_way():
    with AgreedStop() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(2)


def test_one_process_agrees_with_itself():
    check_agreement("schedule", "abc", timeout=0.1)
