"""The watchdog in process 0: it reads the heartbeats of all other processes, and ends the job when one is lost."""

from __future__ import annotations

import dataclasses
import os
import selectors
import socket
import time
from collections.abc import Callable

from hetjax.cluster.greeting import Challenge
from hetjax.cluster.messages import Goodbye, Hello, Message, MessageStream, Status, Verdict
from hetjax.cluster.peers import RESUME, Peer, find_lost, heartbeat_interval

MOST_STRANGERS = 64
GREETING_SECONDS = 5.0


@dataclasses.dataclass(eq=False)
class _Connection:
    """A connection to a process of the job.

    Attributes:
        stream: What it carries.
        peer: The process at its other end; None until it has introduced itself.
        left: Whether that process has left the job.
    """

    stream: MessageStream
    peer: Peer | None = None
    left: bool = False


class WatchdogServer:
    """Serves the connections of the other processes, in one thread.

    Until all have joined anybody may connect: of connections that have not proved the secret so far it keeps the
    newest `MOST_STRANGERS`, or as many as the job has processes, for `GREETING_SECONDS` at most. Then it listens no
    longer.

    Args:
        listener: The socket that the others connect to.
        secret: What only processes of this job know.
        processes: How many processes the job has.
        timeout: Seconds without a heartbeat, or without progress, that end the job.
        join_timeout: Seconds that the others have to connect.
        status: Returns what this process is doing.
        end: Prints a message and ends this process.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: str,
        *,
        processes: int,
        timeout: float,
        join_timeout: float,
        status: Callable[[], Status],
        end: Callable[[str], None],
    ):
        self._listener, self._secret, self._processes = listener, secret, processes
        self._timeout, self._join_timeout = timeout, join_timeout
        self._interval = heartbeat_interval(timeout, processes)
        self._status, self._end = status, end
        now = time.monotonic()
        self._me = Peer(0, processes, socket.gethostname(), os.getpid(), now, now)
        self._joined: dict[int, _Connection] = {}
        self._strangers: list[Challenge] = []  # the oldest first
        self._proved: set[_Connection] = set()
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
        """Run the loop of the thread until all have left, or the job is ended."""
        try:
            while not self._done():
                for key, _ in self._selector.select(self._interval):
                    # What one of them led to may have closed another.
                    if key.fileobj.fileno() >= 0:
                        key.data()
                now = time.monotonic()
                for stranger in [each for each in self._strangers if now > each.deadline]:
                    self._refuse(stranger)
                if now - self._last_turn >= self._interval:
                    self._turn(now)
        finally:
            for connection in (*self._joined.values(), *self._proved):
                connection.stream.close()
            self._stop_listening()

    def _done(self) -> bool:
        if self._closing and self._reason is not None:
            self._send_verdict(f"{self._me} stopped: {self._reason}")
            return True
        return self._closing and len(self._joined) == self._processes - 1 and not self._present()

    def _present(self) -> list[_Connection]:
        """Return the connections of those that have joined and not left."""
        return [connection for connection in self._joined.values() if not connection.left]

    def _turn(self, now: float) -> None:
        """Send a heartbeat to all, and check theirs."""
        gap, self._last_turn = now - self._last_turn, now
        status = self._status()
        self._me.update(status, now)
        peers = [connection.peer for connection in self._present()]
        if gap > self._timeout / 2:
            # This process was stopped itself: the others' silence meanwhile was its own.
            for peer in (self._me, *peers):
                peer.allow(gap)
        for connection in self._present():
            connection.stream.send(status)
        if len(self._joined) < self._processes - 1 and now - self._started > self._join_timeout:
            absent = ", ".join(str(p) for p in range(1, self._processes) if p not in self._joined)
            self._end_job(
                f"process {absent} of {self._processes} did not join within {self._join_timeout:g} s; {RESUME}"
            )
        message = find_lost([self._me, *peers], self._timeout, now)
        if message:
            self._end_job(message)

    def _accept(self) -> None:
        """Challenge a connection; the oldest that has not answered makes room for it."""
        while len(self._strangers) >= max(MOST_STRANGERS, self._processes):
            self._refuse(self._strangers[0])
        try:
            connection = self._listener.accept()[0]
        except OSError:  # it is gone again, or this process has too many files open: strangers make room
            if self._strangers:
                self._refuse(self._strangers[0])
            return
        challenge = Challenge(connection, self._secret, GREETING_SECONDS)
        self._strangers.append(challenge)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._greet(challenge))

    def _greet(self, challenge: Challenge) -> None:
        proved = challenge.receive()
        if proved:
            self._strangers.remove(challenge)
            self._selector.unregister(challenge.socket)
            connection = _Connection(MessageStream(challenge.socket))
            self._proved.add(connection)
            self._selector.register(connection.stream, selectors.EVENT_READ, lambda: self._receive(connection))
        elif proved is False:
            self._refuse(challenge)

    def _refuse(self, challenge: Challenge) -> None:
        self._strangers.remove(challenge)
        self._selector.unregister(challenge.socket)
        challenge.socket.close()

    def _stop_listening(self) -> None:
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()
        while self._strangers:
            self._refuse(self._strangers[0])

    def _receive(self, connection: _Connection) -> None:
        messages = connection.stream.receive()
        for message in messages or ():
            if connection.peer is not None:
                self._read(connection, message)
            elif not self._join(connection, message):
                messages = None
                break
        if messages is None:
            self._lose(connection)

    def _join(self, connection: _Connection, hello: Message) -> bool:
        """Take in a process that introduces itself; False where its number is none, or taken."""
        free = set(range(1, self._processes)) - set(self._joined)
        if not isinstance(hello, Hello) or hello.process not in free:
            return False
        now = time.monotonic()
        connection.peer = Peer(hello.process, self._processes, hello.host, hello.pid, now, now)
        self._proved.discard(connection)
        self._joined[hello.process] = connection
        connection.stream.send(Hello(process=0, host=self._me.host, pid=self._me.pid))
        if len(self._joined) == self._processes - 1:
            self._stop_listening()
        return True

    def _read(self, connection: _Connection, message: Message) -> None:
        if isinstance(message, Status):
            connection.peer.update(message, time.monotonic())
        elif isinstance(message, Goodbye):
            connection.left = True
            if message.reason:
                self._end_job(f"{connection.peer} stopped: {message.reason}")

    def _lose(self, connection: _Connection) -> None:
        """Handle a connection that has closed; the kernel closes it when the process dies."""
        self._selector.unregister(connection.stream)
        connection.stream.close()
        self._proved.discard(connection)
        if connection.peer is not None and not connection.left:
            connection.left = True
            self._end_job(connection.peer.lost_message("died"))

    def _end_job(self, message: str) -> None:
        self._send_verdict(message)
        self._end(message)

    def _send_verdict(self, message: str) -> None:
        """Send everybody the message that ends the job, and wait a moment until they have read it."""
        reached = [each.stream for each in self._present() if each.stream.send(Verdict(message=message))]
        # Closing with unread lines would reset the connection, and the message might be lost.
        for stream in reached:
            stream.socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 1.0
        for stream in reached:
            while time.monotonic() < deadline and stream.receive() is not None:
                pass
