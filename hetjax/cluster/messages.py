"""The messages between the watchdog's server and its clients, and the TCP connection that carries them."""

from __future__ import annotations

import dataclasses
import json
import socket

LONGEST_LINE = 1 << 20
"""Bytes; far more than any message."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hello:
    """A process introduces itself.

    Attributes:
        process: Its number in the job.
        host: The name of its machine.
        pid: Its process id on that machine.
    """

    process: int
    host: str
    pid: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """A heartbeat: what a process is doing.

    Attributes:
        position: Where it is in the one total order of the job, such as (step, action); compared between processes.
        doing: The same in words.
        unlimited: Whether what it is doing may take any time, so that only its death counts.
    """

    position: tuple[int, ...] = ()
    doing: str = "starting"
    unlimited: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goodbye:
    """A process leaves; with a reason, it ends with an error that ends the whole job."""

    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The server ends the job; every process prints the message."""

    message: str


Message = Hello | Status | Goodbye | Verdict
_KINDS = {kind.__name__: kind for kind in (Hello, Status, Goodbye, Verdict)}


def encode(message: Message) -> bytes:
    """Return a message as one line of JSON."""
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message in a line of `encode`. Raises ValueError for a line that holds none."""
    try:
        fields = json.loads(line)
        if "position" in fields:
            fields["position"] = tuple(map(int, fields["position"]))
        return _KINDS[fields.pop("kind")](**fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"no message of the watchdog: {line[:100]!r}") from error


class MessageStream:
    """One TCP connection that carries messages both ways, a line each."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        # Lines are short; a peer that takes none of them any more is noticed by its silence.
        connection.settimeout(1.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def fileno(self) -> int:
        """Return the file descriptor of the socket, for `select`."""
        return self.socket.fileno()

    def send(self, message: Message) -> bool:
        """Send a message; returns whether it could be handed to the network."""
        try:
            self.socket.sendall(encode(message))
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """Return the messages that have come, perhaps none yet.

        None when the other side closed or broke the connection, or sent what is no message.
        """
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) >= LONGEST_LINE:
            return None
        try:
            return [decode(line) for line in lines]
        except ValueError:
            return None

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
