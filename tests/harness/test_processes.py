"""The harness itself: a group that works, one that fails, and one that hangs."""

import os
import time

import jax
import pytest

from tests.harness.processes import ProcessFailed, run_processes


def where(offset):
    return jax.process_index() + offset, jax.device_count(), len(jax.local_devices())


def fail_in_one():
    if jax.process_index() == 1:
        raise RuntimeError("the second one fails")
    time.sleep(60)


def note_and_hang(folder):
    with open(f"{folder}/{jax.process_index()}", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def test_results_come_back_in_process_order():
    assert run_processes(2, where, devices=3, offset=10) == [(10, 6, 3), (11, 6, 3)]


def test_failure_of_one_ends_all_and_says_why():
    with pytest.raises(ProcessFailed, match="the second one fails"):
        run_processes(2, fail_in_one, devices=1)


def test_hanging_processes_are_ended(tmp_path):
    with pytest.raises(ProcessFailed):
        run_processes(2, note_and_hang, devices=1, timeout=6, folder=str(tmp_path))
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
