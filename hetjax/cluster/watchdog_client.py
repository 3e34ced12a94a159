"""The watchdog in every process but the first: it sends heartbeats to process 0, and reads those of process 0."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable

from hetjax.cluster.messages import Goodbye, Hello, Message, MessageStream, Status, Verdict
from hetjax.cluster.peers import Peer, find_lost, heartbeat_interval

GOODBYE_SECONDS = 2.0


class WatchdogClient:
    """Serves the connection to process 0, in one thread.

    Args:
        connection: The socket to process 0, behind the greeting.
        process: Which process this is.
        processes: How many processes the job has.
        timeout: Seconds without a heartbeat of process 0 that end this process.
        status: Returns what this process is doing.
        end: Prints a message and ends this process.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        process: int,
        processes: int,
        timeout: float,
        status: Callable[[], Status],
        end: Callable[[str], None],
    ):
        self._stream = MessageStream(connection)
        self._timeout, self._interval = timeout, heartbeat_interval(timeout, processes)
        self._status, self._end = status, end
        now = self._last_turn = time.monotonic()
        # Its host and process id come with its answer.
        self._server = Peer(0, processes, connection.getpeername()[0], 0, now, now)
        self._wake, self._woken = socket.socketpair()
        self._goodbye_until: float | None = None
        self._reason: str | None = None
        self._stream.send(Hello(process=process, host=socket.gethostname(), pid=os.getpid()))

    def close(self, reason: str | None) -> None:
        """From another thread: say goodbye, with the reason if it is an error that ends the whole job."""
        self._reason = reason
        self._wake.send(b"x")

    def run(self) -> None:
        """Run the loop of the thread until this process has left, or is ended."""
        while True:
            ready, _, _ = select.select([self._stream, self._woken], [], [], self._interval)
            if self._woken in ready:
                self._woken.recv(1)
                self._say_goodbye()
            messages = self._stream.receive() if self._stream in ready else []
            for message in messages or ():
                self._read(message)
            if messages is None:
                break
            now = time.monotonic()
            if self._goodbye_until is not None and now > self._goodbye_until:
                break
            if now - self._last_turn >= self._interval:
                self._turn(now)
        self._stream.close()
        if self._goodbye_until is None:
            self._end(self._server.lost_message("died"))

    def _say_goodbye(self) -> None:
        """Process 0 closes the connection once it has read this."""
        self._stream.send(Goodbye(reason=self._reason or ""))
        self._stream.socket.shutdown(socket.SHUT_WR)
        self._goodbye_until = time.monotonic() + GOODBYE_SECONDS

    def _turn(self, now: float) -> None:
        """Send a heartbeat, and check those of process 0, which checks all the others."""
        gap, self._last_turn = now - self._last_turn, now
        if gap > self._timeout / 2:
            self._server.allow(gap)
        if self._goodbye_until is None:
            self._stream.send(self._status())
        if now - self._server.last_heartbeat > self._timeout:
            self._end(find_lost([self._server], self._timeout, now))

    def _read(self, message: Message) -> None:
        if isinstance(message, Verdict):
            self._end(message.message)
        elif isinstance(message, Hello):
            self._server.host, self._server.pid = message.host, message.pid
        elif isinstance(message, Status):
            self._server.update(message, time.monotonic())
