"""Whoever finds the port of the watchdog can neither end a job, nor keep it waiting, nor fill its memory."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hetjax.cluster.greeting import SIZE, Challenge, answer, new_secret
from hetjax.cluster.messages import Hello, decode, encode
from hetjax.cluster.watchdog_server import MOST_STRANGERS
from tests.harness.watched_processes import Job

CONNECTIONS = 1_100
RANDOM = np.random.default_rng(0)


def garbage(connection, secret):
    connection.sendall(RANDOM.bytes(100_000))


def huge(connection, secret):
    for _ in range(64):
        connection.sendall(b"x" * (1 << 20))


def deep(connection, secret):
    connection.sendall(b"[" * 60_000 + b"\n")


def greeting_without_secret(connection, secret):
    connection.sendall(encode(Hello(process=1, host="elsewhere", pid=1)))


def wrong_secret(connection, secret):
    answer(connection, new_secret(), 1)
    connection.sendall(encode(Hello(process=1, host="elsewhere", pid=1)))


def replayed(connection, secret):
    """The answer to the challenge of another connection, as somebody may have overheard it."""
    overheard = hmac.digest(secret.encode(), RANDOM.bytes(SIZE), "sha256")
    connection.recv(SIZE)
    connection.sendall(overheard)
    connection.sendall(encode(Hello(process=1, host="elsewhere", pid=1)))


def reflected(connection, secret):
    connection.sendall(connection.recv(SIZE))


def http(connection, secret):
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def nothing(connection, secret):
    """Stays open and says nothing."""
    time.sleep(0.3)


def byte_by_byte(connection, secret):
    for _ in range(SIZE - 1):
        connection.sendall(b"\0")
        time.sleep(0.01)


def closed_at_once(connection, secret):
    pass


def reset(connection, secret):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half_closed(connection, secret):
    connection.shutdown(socket.SHUT_WR)
    time.sleep(0.1)


KINDS = [
    garbage, huge, deep, greeting_without_secret, wrong_secret, replayed, reflected, http, nothing, byte_by_byte,
    closed_at_once, reset, half_closed,
]  # fmt: skip


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads what a process holds in /proc")
def test_no_stranger_ends_a_job_or_holds_more_than_a_few_connections(tmp_path):
    """They come while process 0 waits for process 1, which joins among them."""
    working = [("at", (1,), "step 1"), ("ready",), ("sleep", 0.3), ("close",)]
    with Job(tmp_path, [working, [("late", 3.0), *working]], timeout=10, join_timeout=30) as job:
        store = tmp_path / "hetjax-watchdog-0"
        while not store.exists():
            time.sleep(0.01)
        port, secret = store.read_text().split()
        pid = job.processes[0].pid
        files, memory = open_files(pid), resident(pid)
        most_files = most_memory = 0

        def attack(kind):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", int(port)), timeout=5) as stranger,
            ):
                kind(stranger, secret)

        threads = [threading.Thread(target=attack, args=(kind,)) for kind in KINDS for _ in range(4)]
        for thread in threads:
            thread.start()
        held = []
        for _ in range(CONNECTIONS):
            with contextlib.suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", int(port)), timeout=1))
            most_files, most_memory = max(most_files, open_files(pid)), max(most_memory, resident(pid))
        for thread in threads:
            thread.join(20)
        codes, _ = job.end(20)
        for each in held:
            each.close()
        assert codes == {0: 0, 1: 0}, [job.printed(index) for index in range(2)]
        assert len(held) > MOST_STRANGERS, "more came than it keeps"
        assert most_files - files <= MOST_STRANGERS
        assert most_memory - memory <= 16 << 20


def test_once_all_have_joined_nobody_else_can_connect(tmp_path):
    working = [("at", (1,), "step 1"), ("ready",), ("sleep", 1.5), ("close",)]
    with Job(tmp_path, [working, working], timeout=10) as job:
        job.wait_ready()
        port = int((tmp_path / "hetjax-watchdog-0").read_text().split()[0])
        time.sleep(0.5)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        assert job.end(10)[0] == {0: 0, 1: 0}


def test_a_greeting_is_over_once_the_server_has_taken_the_answer():
    """One that was closed instead, to make room for others, is an error, so that it is tried again."""
    for taken in (True, False):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            challenge, failures = Challenge(ours, "secret", 1), []
            thread = threading.Thread(target=lambda sock=theirs, found=failures: greet(sock, found))
            thread.start()
            if taken:
                while challenge.receive() is None:
                    time.sleep(0.001)
            else:
                ours.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            assert bool(failures) is not taken


def greet(connection, failures):
    try:
        answer(connection, "secret", 1)
    except OSError as error:
        failures.append(error)


@pytest.mark.parametrize("line", [b"[" * 60_000, b"{}", b"1", b'{"kind": "Status", "position": {"a": 1}}', b"\xff"])
def test_a_line_that_is_no_message_is_a_value_error(line):
    with pytest.raises(ValueError, match="no message of the watchdog"):
        decode(line)
    assert json.loads(encode(Hello(process=1, host="a", pid=2)))["process"] == 1
