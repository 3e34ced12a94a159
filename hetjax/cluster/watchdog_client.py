"""The watch as every process but the first keeps it: it reports to process 0, and listens to it."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from hetjax.cluster.peers import Peer, Status, Wire, interval_of, judge, read_status

GOODBYE_SECONDS = 2.0


class Member:
    """Serves the connection to process 0, in one thread. The arguments are those of `Hub`."""

    def __init__(
        self,
        connection: socket.socket,
        token: str,
        *,
        process: int,
        processes: int,
        timeout: float,
        status: Callable[[], Status],
        end: Callable[[str], None],
    ):
        self._wire = Wire(connection)
        self._timeout, self._interval = timeout, interval_of(timeout, processes)
        self._status, self._end = status, end
        now = self._last_turn = time.monotonic()
        # Its host and process id come with its answer.
        self._wire.peer = Peer(0, processes, connection.getpeername()[0], 0, now, now)
        self._wake, self._woken = socket.socketpair()
        self._goodbye_until: float | None = None
        self._reason: str | None = None
        self._wire.send(token=token, process=process, host=socket.gethostname(), pid=os.getpid())

    def close(self, reason: str | None) -> None:
        """From another thread: say goodbye, with the reason if it is an error that ends the whole job."""
        self._reason = reason
        self._wake.send(b"x")

    def run(self) -> None:
        """The thread."""
        while True:
            ready, _, _ = select.select([self._wire, self._woken], [], [], self._interval)
            if self._woken in ready:
                self._woken.recv(1)
                self._say_goodbye()
            lines = self._wire.receive() if self._wire in ready else []
            for line in lines or ():
                self._read(line)
            if lines is None:
                break
            now = time.monotonic()
            if self._goodbye_until is not None and now > self._goodbye_until:
                break
            if now - self._last_turn >= self._interval:
                self._turn(now)
        self._wire.close()
        if self._goodbye_until is None:
            self._end(self._wire.peer.blame("died"))

    def _say_goodbye(self) -> None:
        """Process 0 closes the connection once it has read this."""
        self._wire.send(goodbye=self._reason or "")
        self._wire.socket.shutdown(socket.SHUT_WR)
        self._goodbye_until = time.monotonic() + GOODBYE_SECONDS

    def _turn(self, now: float) -> None:
        """Send a sign of life, and look for that of process 0, which judges all the others."""
        gap, self._last_turn = now - self._last_turn, now
        if gap > self._timeout / 2:
            self._wire.peer.excuse(gap)
        if self._goodbye_until is None:
            self._wire.send_status(self._status())
        if now - self._wire.peer.heard > self._timeout:
            self._end(judge([self._wire.peer], self._timeout, now))

    def _read(self, line: dict[str, Any]) -> None:
        peer = self._wire.peer
        if "verdict" in line:
            self._end(line["verdict"])
        elif "pid" in line:
            peer.host, peer.pid = line["host"], line["pid"]
        else:
            peer.update(read_status(line), time.monotonic())
