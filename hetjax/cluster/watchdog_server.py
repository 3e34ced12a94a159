"""The watch as process 0 keeps it: it hears from all the others, judges, and tells them."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from hetjax.cluster.peers import RESUME, Peer, Status, Wire, interval_of, judge, read_status


class Hub:
    """Serves the connections of the other processes, in one thread.

    Args:
        listener: The socket that the others connect to.
        token: The word that they greet with; who does not know it is no process of this job.
        processes: How many processes the job has.
        timeout: Seconds without a sign of life, or without progress, that end the job.
        join_timeout: Seconds that the others have to connect.
        status: Tells what this process does now.
        end: Prints a message and ends this process.
    """

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        *,
        processes: int,
        timeout: float,
        join_timeout: float,
        status: Callable[[], Status],
        end: Callable[[str], None],
    ):
        self._listener, self._token, self._processes = listener, token, processes
        self._timeout, self._join_timeout = timeout, join_timeout
        self._interval = interval_of(timeout, processes)
        self._status, self._end = status, end
        now = time.monotonic()
        self._me = Peer(0, processes, socket.gethostname(), os.getpid(), now, now)
        self._wires: dict[int, Wire] = {}
        self._strangers: set[Wire] = set()
        self._started = self._last_turn = now
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: self._woken.recv(1))
        self._closing = False
        self._reason: str | None = None

    def close(self, reason: str | None) -> None:
        """From another thread: end once all have said goodbye; with a reason, end the whole job at once."""
        self._reason, self._closing = reason, True
        self._wake.send(b"x")

    def run(self) -> None:
        """The thread."""
        try:
            while not self._done():
                for key, _ in self._selector.select(self._interval):
                    key.data()
                now = time.monotonic()
                if now - self._last_turn >= self._interval:
                    self._turn(now)
        finally:
            for wire in (*self._wires.values(), *self._strangers):
                wire.close()
            self._listener.close()

    def _done(self) -> bool:
        if self._closing and self._reason is not None:
            self._tell_all(f"{self._me} stopped: {self._reason}")
            return True
        return self._closing and len(self._wires) == self._processes - 1 and not self._present()

    def _present(self) -> list[Wire]:
        """The connections of those that have come and not said goodbye."""
        return [wire for wire in self._wires.values() if not wire.left]

    def _turn(self, now: float) -> None:
        """Send a sign of life, and judge."""
        gap, self._last_turn = now - self._last_turn, now
        status = self._status()
        self._me.update(status, now)
        peers = [wire.peer for wire in self._present()]
        if gap > self._timeout / 2:
            # This process was stopped itself: the others' silence meanwhile was its own.
            for peer in (self._me, *peers):
                peer.excuse(gap)
        for wire in self._present():
            wire.send_status(status)
        if len(self._wires) < self._processes - 1 and now - self._started > self._join_timeout:
            absent = ", ".join(str(p) for p in range(1, self._processes) if p not in self._wires)
            self._give_up(
                f"process {absent} of {self._processes} did not join within {self._join_timeout:g} s; {RESUME}"
            )
        message = judge([self._me, *peers], self._timeout, now)
        if message:
            self._give_up(message)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        wire = Wire(connection)
        self._strangers.add(wire)
        self._selector.register(wire, selectors.EVENT_READ, lambda: self._hear(wire))

    def _hear(self, wire: Wire) -> None:
        lines = wire.receive()
        for line in lines or ():
            if wire.peer is not None:
                self._read(wire, line)
            elif not self._greet(wire, line):
                lines = None
                break
        if lines is None:
            self._lose(wire)

    def _greet(self, wire: Wire, line: dict[str, Any]) -> bool:
        if line.get("token") != self._token:
            return False
        now = time.monotonic()
        wire.peer = Peer(line["process"], self._processes, line["host"], line["pid"], now, now)
        self._strangers.discard(wire)
        self._wires[line["process"]] = wire
        wire.send(process=0, host=self._me.host, pid=self._me.pid)
        return True

    def _read(self, wire: Wire, line: dict[str, Any]) -> None:
        if "goodbye" not in line:
            wire.peer.update(read_status(line), time.monotonic())
            return
        wire.left = True
        if line["goodbye"]:
            self._give_up(f"{wire.peer} stopped: {line['goodbye']}")

    def _lose(self, wire: Wire) -> None:
        """A connection has closed; the kernel closes it when the process dies."""
        self._selector.unregister(wire)
        wire.close()
        self._strangers.discard(wire)
        if wire.peer is not None and not wire.left:
            wire.left = True
            self._give_up(wire.peer.blame("died"))

    def _give_up(self, message: str) -> None:
        self._tell_all(message)
        self._end(message)

    def _tell_all(self, message: str) -> None:
        """Hand everybody the message, and wait a moment until they have read it."""
        told = [wire for wire in self._present() if wire.send(verdict=message)]
        # Closing with unread lines would reset the connection, and the message might be lost.
        for wire in told:
            wire.socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 1.0
        for wire in told:
            while time.monotonic() < deadline and wire.receive() is not None:
                pass
